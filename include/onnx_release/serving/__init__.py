"""Serving: other versions of ONNX Runtime, and layouts of model servers."""
