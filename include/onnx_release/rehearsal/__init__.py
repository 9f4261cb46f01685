"""Rehearsal of another version of ONNX Runtime with released models."""
