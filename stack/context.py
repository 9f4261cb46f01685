"""What every service needs to know of the stack it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from stack.credentials import Credentials
from stack.layout import Layout
from stack.ports import HOST, Ports


@dataclass(frozen=True, slots=True)
class Context:
    """One stack: its folder, ports and secrets."""

    layout: Layout
    ports: Ports
    credentials: Credentials

    @property
    def airflow_url(self) -> str:
        """The base of Airflow's UI and REST API (``/api/v2``)."""
        return f"http://{HOST}:{self.ports.airflow}"

    @property
    def mlflow_url(self) -> str:
        """MLflow's UI and tracking URI."""
        return f"http://{HOST}:{self.ports.mlflow}"

    @property
    def minio_url(self) -> str:
        """The S3 endpoint, and MinIO's console in a browser."""
        return f"http://{HOST}:{self.ports.minio}"
