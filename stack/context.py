"""Folder, ports and secrets of one stack."""

from __future__ import annotations

from dataclasses import dataclass

from stack.credentials import Credentials
from stack.layout import Layout
from stack.ports import HOST, Ports


@dataclass(frozen=True, slots=True)
class Context:
    """One stack."""

    layout: Layout
    ports: Ports
    credentials: Credentials

    @property
    def airflow_url(self) -> str:
        """Base address of Airflow's UI and REST API (``/api/v2``)."""
        return f"http://{HOST}:{self.ports.airflow}"

    @property
    def mlflow_url(self) -> str:
        """Address of MLflow's UI, and its tracking URI."""
        return f"http://{HOST}:{self.ports.mlflow}"

    @property
    def minio_url(self) -> str:
        """S3 endpoint, and address of MinIO's console."""
        return f"http://{HOST}:{self.ports.minio}"
