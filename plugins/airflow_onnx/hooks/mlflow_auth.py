"""Credentials of Airflow connections for MLflow's client.

MLflow reads user, password and token from environment variables. Child processes and crash reports would inherit them.
This module uses MLflow's plugin interface for requests instead. The environment contains the provider's name only.
"""

from __future__ import annotations

import math
import os
from importlib.metadata import entry_points
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from requests import PreparedRequest
from requests.auth import AuthBase

from airflow_onnx.deployment import settings

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow_server import MlflowServer

PROVIDER_NAME = "airflow-connection"

_servers: dict[str, MlflowServer] = {}


def origin(url: str) -> str:
    """Return scheme, host and port of an address. Credentials are sent to this origin only."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{port}"


class ConnectionAuth(AuthBase):
    """Request authentication with the credentials of the server that the request goes to."""

    def __call__(self, request: PreparedRequest) -> PreparedRequest:
        """Add the Authorization header. A request to another server gets none."""
        server = _servers.get(origin(request.url or ""))
        if server is not None and (header := server.authorization()):
            request.headers["Authorization"] = header
        return request


class ConnectionAuthProvider:
    """MLflow's request auth provider for the name in ``MLFLOW_TRACKING_AUTH``."""

    def get_name(self) -> str:
        """Return the provider's name."""
        return PROVIDER_NAME

    def get_auth(self) -> AuthBase:
        """Return the object that signs requests."""
        return ConnectionAuth()


def use(server: MlflowServer) -> None:
    """Make MLflow's client in this process use the server's credentials and TLS settings."""
    _register_provider()
    _servers[origin(server.tracking_uri)] = server
    os.environ["MLFLOW_TRACKING_AUTH"] = PROVIDER_NAME
    # Airflow retries the whole task. The client's default of seven retries with backoff would hide an outage.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    # Its option has whole seconds, and each of the tries above waits for so long.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(math.ceil(settings.request_timeout_s())))
    # A task's log shows each step of a progress bar as a line of its own.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name, setting in (
        ("MLFLOW_TRACKING_INSECURE_TLS", "true" if server.insecure_tls else None),
        ("MLFLOW_TRACKING_SERVER_CERT_PATH", server.ca_file),
    ):
        if setting:
            os.environ[name] = setting
        else:
            os.environ.pop(name, None)


def _register_provider() -> None:
    if entry_points(group="mlflow.request_auth_provider", name=PROVIDER_NAME):
        return  # The package is installed: MLflow loads the provider itself.
    # Private to MLflow 3.17: packages on PYTHONPATH alone have no entry points.
    # Remove when MLflow has a public function to register a request auth provider.
    from mlflow.tracking.request_auth.registry import _request_auth_provider_registry as registry

    if not any(provider.get_name() == PROVIDER_NAME for provider in registry):
        registry.register(ConnectionAuthProvider)
