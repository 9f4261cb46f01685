"""Connections in Airflow, and shell exports for clients."""

from __future__ import annotations

import json
import shlex
from typing import Any
from urllib.parse import urlsplit

from stack import signing
from stack.airflow import python_path
from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.environment import NO_TELEMETRY
from stack.minio import REGION, RELEASE_ACCOUNT, S3_CONFIG
from stack.private import write_private


def configure_airflow(context: Context) -> None:
    """Create the connections through the API: one second instead of ten by the command line."""
    api = AirflowApi(context)
    for connection in connections(context):
        api.put_connection(connection)


def connections(context: Context) -> list[dict[str, Any]]:
    """Return the connections in the form of Airflow's REST API.

    The port is a field of its own. Without it the Test button in Airflow's list sends port 0, and Airflow refuses to
    test another port than the stored one.
    """
    # Airflow's own S3 hook, for other DAGs and for debugging, reads only the extra.
    config = {key: value for key, value in S3_CONFIG.items() if key != "proxies"}
    extra = {"endpoint_url": context.minio_url, "region_name": REGION, "config_kwargs": config}
    # The gateway serves MinIO's browser below `/minio`.
    extra["console_url"] = f"{context.minio_url}/minio/{{bucket}}/{{prefix}}"
    return [
        {"connection_id": "mlflow_default", "conn_type": "mlflow", **_address(context.mlflow_url)},
        {
            "connection_id": "minio_default",
            "conn_type": "s3store",
            **_address(context.minio_url),
            "login": RELEASE_ACCOUNT,
            "password": context.credentials.release_secret_key,
            "extra": json.dumps(extra),
        },
        {
            "connection_id": signing.CONNECTION,
            "conn_type": "generic",
            "extra": json.dumps({"private_key_file": str(context.layout.home / signing.PRIVATE)}),
        },
    ]


def _address(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {"host": f"{parts.scheme}://{parts.hostname}", "port": parts.port}


def connection_environment(context: Context) -> dict[str, str]:
    """Return the connections as environment variables, for Airflow's code without its metadata database."""
    variables = {}
    for connection in connections(context):
        name = connection.pop("connection_id")
        variables[f"AIRFLOW_CONN_{name.upper()}"] = json.dumps(connection)
    return variables


def client_environment(context: Context) -> dict[str, str]:
    """Return the environment variables of a client of the stack."""
    return {
        "MLFLOW_TRACKING_URI": context.mlflow_url,
        "MLFLOW_S3_ENDPOINT_URL": context.minio_url,
        "AWS_ACCESS_KEY_ID": context.credentials.minio_access_key,
        "AWS_SECRET_ACCESS_KEY": context.credentials.minio_secret_key,
        "AWS_DEFAULT_REGION": REGION,
        "AIRFLOW_API_URL": context.airflow_url,
        "AIRFLOW_USERNAME": context.credentials.airflow_username,
        "AIRFLOW_PASSWORD": context.credentials.airflow_password,
        "AIRFLOW_HOME": str(context.layout.airflow_home),
    }


def write_env_file(context: Context) -> None:
    """Write the exports (mode 600) for ``source .local/env``; PYTHONPATH is for the `airflow` command line."""
    variables = {**NO_TELEMETRY, **client_environment(context)}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines.append(f'export PYTHONPATH={shlex.quote(python_path(context))}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    write_private(context.layout.env_file, "\n".join(lines) + "\n")
