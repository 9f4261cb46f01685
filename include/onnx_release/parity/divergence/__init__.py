"""Which node of an exported graph computes something else than PyTorch: one heavy library a file, `search` on top."""
