"""The environment of the services' processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# A user's own settings for these tools would send the embedded stack to another server, or another user's data to it.
_FOREIGN = ("AIRFLOW", "_AIRFLOW", "AWS_", "MLFLOW_", "_MLFLOW", "MINIO_", "JFS_", "PYTHON", "VIRTUAL_ENV", "STACK_")


def clean_environment(**extra: str) -> dict[str, str]:
    """Return the caller's environment without settings for the stack's tools, with `extra` on top."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    folder = str(Path(sys.executable).parent)
    kept["PATH"] = os.pathsep.join([folder, kept.get("PATH", os.defpath)])
    # A proxy of the user's must not see loopback traffic.
    kept["NO_PROXY"] = kept["no_proxy"] = "127.0.0.1,localhost"
    kept["PYTHONUNBUFFERED"] = "1"
    return {**kept, **extra}
