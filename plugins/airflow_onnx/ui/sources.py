"""Connections of the pages, read as the API server reads them."""

from __future__ import annotations

from typing import Any

from airflow_onnx import defaults
from airflow_onnx.deployment import settings
from airflow_onnx.hooks.mlflow_server import MlflowServer
from airflow_onnx.hooks.s3_store import aws_extra
from airflow_onnx.ui.health import store_address


def mlflow_server() -> MlflowServer:
    """Return the MLflow server whose releases the pages show."""
    return MlflowServer.from_connection(_connection(settings.pages_mlflow_conn_id()))


def store() -> str:
    """Return the address of the object store for the health line."""
    return store_address(aws_extra(_connection(defaults.S3_CONN_ID)))


def _connection(conn_id: str) -> Any:
    # Not `BaseHook.get_connection`: outside of tasks it reads no connection of the metadata database.
    from airflow.models.connection import Connection

    return Connection.get_connection_from_secrets(conn_id)
