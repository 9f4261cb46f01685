"""Credentials for MLflow's client, straight from Airflow connections.

MLflow reads user, password and token from environment variables, which every child process and crash report would
inherit. Its public extension point for requests is used instead: the environment only names this provider.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowServer

PROVIDER_NAME = "airflow-connection"

_servers: dict[str, MlflowServer] = {}


def origin(url: str) -> str:
    """Return scheme, host and port of an address; credentials belong to exactly these."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{parts.hostname}:{port}"


class ConnectionAuth(AuthBase):
    """Adds the credentials of the server that a request goes to, and none to any other."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign one request."""
        server = _servers.get(origin(request.url or ""))
        if server is not None and (header := server.authorization()):
            request.headers["Authorization"] = header
        return request


class ConnectionAuthProvider:
    """What MLflow asks for the `AuthBase` of the name in ``MLFLOW_TRACKING_AUTH``."""

    def get_name(self) -> str:
        """Return the provider's name."""
        return PROVIDER_NAME

    def get_auth(self) -> AuthBase:
        """Return the object that signs requests."""
        return ConnectionAuth()


def use(server: MlflowServer) -> None:
    """Make MLflow's client, in this process, speak to `server` with its credentials and TLS settings."""
    from mlflow.tracking.request_auth.registry import _request_auth_provider_registry as registry

    if not any(provider.get_name() == PROVIDER_NAME for provider in registry):
        registry.register(ConnectionAuthProvider)
    _servers[origin(server.tracking_uri)] = server
    os.environ["MLFLOW_TRACKING_AUTH"] = PROVIDER_NAME
    # The task is retried as a whole; the client's own seven retries with backoff would hide an outage for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    for name, setting in (
        ("MLFLOW_TRACKING_INSECURE_TLS", "true" if server.insecure_tls else ""),
        ("MLFLOW_TRACKING_SERVER_CERT_PATH", server.ca_file),
    ):
        if setting:
            os.environ[name] = setting
        else:
            os.environ.pop(name, None)
