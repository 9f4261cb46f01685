"""Comparison of PyTorch's and ONNX Runtime's outputs."""
