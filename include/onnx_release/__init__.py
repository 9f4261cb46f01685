"""From a trained PyTorch model to a judged ONNX artifact: files and arrays in, records out.

Nothing in this package knows Airflow, a server or a remote store; it runs in a plain shell.
"""
