"""Checks of one ONNX file."""
