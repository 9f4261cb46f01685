"""Metadata of the objects of a release: the training run, the artifact, and the MLflow server that has both."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow_server import MlflowServer

TRACKING_SERVER = "tracking-server"


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
