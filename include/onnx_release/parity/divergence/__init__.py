"""Search for the first node of an exported graph that differs from PyTorch. Each file uses one heavy library."""
