"""The core of the release: a trained PyTorch model becomes a tested ONNX artifact.

The core reads files and arrays and returns records. It imports neither Airflow nor a client of MLflow or S3, so it runs
in a plain shell. `onnx_release.run_step` contains its public calls.
"""

import os

# ONNX Runtime gathers usage data for its maker, among them names of files and graphs. It reads this at its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.2.0"
