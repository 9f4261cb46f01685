"""Environment of the services' processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# A user's settings for these tools could connect the stack to another server.
_FOREIGN = (
    "AIRFLOW", "_AIRFLOW", "AWS_", "MLFLOW_", "_MLFLOW", "MINIO_", "JFS_", "PG", "PYTHON", "VIRTUAL_ENV", "STACK_",
)  # fmt: skip
# MLflow and ONNX Runtime send usage data to their makers by default.
NO_TELEMETRY = {"MLFLOW_DISABLE_TELEMETRY": "true", "ORT_DISABLE_TELEMETRY": "1"}


def clean_environment(**extra: str) -> dict[str, str]:
    """Return the caller's environment plus `extra`, without the user's settings for the stack's tools."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    folder = str(Path(sys.executable).parent)
    kept["PATH"] = os.pathsep.join([folder, kept.get("PATH", os.defpath)])
    # Loopback traffic must not go through the user's proxy.
    kept["NO_PROXY"] = kept["no_proxy"] = "127.0.0.1,localhost"
    kept["PYTHONUNBUFFERED"] = "1"
    return {**kept, **NO_TELEMETRY, **extra}
