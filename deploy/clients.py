"""Addresses and keys of docker-compose.yaml for clients on this machine.

Separate from `compose.py`, which runs on any Python without packages: the stack's ports need psutil.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from deploy.compose import Project
from deploy.env import read
from stack.context import Context
from stack.credentials import Credentials
from stack.layout import Layout
from stack.ports import Ports

RELEASE_ACCOUNT = "onnx-release"
# MinIO's accounts, which minio/setup.sh creates, and the names of their secrets in .env.
ACCOUNTS = {
    RELEASE_ACCOUNT: "RELEASE_S3_SECRET_KEY",
    "mlflow": "MLFLOW_S3_SECRET_KEY",
    "airflow-logs": "LOGS_S3_SECRET_KEY",
}


def context(project: Project, home: Path, ports: Ports, account: str = RELEASE_ACCOUNT) -> Context:
    """Return the addresses and keys of a running deployment. Secrets that clients do not use are random.

    :param home: a folder for the files of clients.
    :param account: the MinIO account of the keys.
    """
    secrets = read(project.env_file)
    credentials = dataclasses.replace(
        Credentials.generate(),
        airflow_password=secrets["AIRFLOW_ADMIN_PASSWORD"],
        minio_access_key=account,
        minio_secret_key=secrets[ACCOUNTS[account]],
    )
    return Context(Layout(home), ports, credentials)
