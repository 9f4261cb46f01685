"""Metadata of the objects of a release: media type, training run, artifact, and the MLflow server that has both."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow_server import MlflowServer

TRACKING_SERVER = "tracking-server"
_CONTENT_TYPES = {
    ".onnx": "application/octet-stream",
    ".data": "application/octet-stream",
    ".yaml": "application/yaml",
    "MLmodel": "application/yaml",
}


def object_metadata(server: MlflowServer, training_run_id: str, sha256: str) -> dict[str, str]:
    """Return the S3 metadata of the objects of one artifact."""
    return {
        "training-run-id": training_run_id,
        "artifact-sha256": sha256,
        TRACKING_SERVER: server_name(server),
    }


def server_name(server: MlflowServer) -> str:
    """Return the address of an MLflow server as metadata, which is a header of HTTP."""
    return server.tracking_uri.encode("ascii", "backslashreplace").decode()


def content_type(path: str) -> str:
    """Return the media type of a file in a model folder."""
    name = Path(path)
    known = _CONTENT_TYPES.get(name.suffix or name.name)
    return known or mimetypes.guess_type(path)[0] or "application/octet-stream"
