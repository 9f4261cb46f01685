"""docker-compose.yaml as clients on this machine see it.

Not in `compose.py`, which runs on any Python without packages: the stack's ports need psutil.
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
# MinIO's accounts as minio/setup.sh makes them, and where .env has the secret of each.
ACCOUNTS = {
    RELEASE_ACCOUNT: "RELEASE_S3_SECRET_KEY",
    "mlflow": "MLFLOW_S3_SECRET_KEY",
    "airflow-logs": "LOGS_S3_SECRET_KEY",
}


def context(project: Project, home: Path, ports: Ports, account: str = RELEASE_ACCOUNT) -> Context:
    """Return a running deployment's addresses and its keys for clients; the secrets that they do not use are made up.

    :param home: a folder for what clients write.
    :param account: whose keys to MinIO they are.
    """
    secrets = read(project.env_file)
    credentials = dataclasses.replace(
        Credentials.generate(),
        airflow_password=secrets["AIRFLOW_ADMIN_PASSWORD"],
        minio_access_key=account,
        minio_secret_key=secrets[ACCOUNTS[account]],
    )
    return Context(Layout(home), ports, credentials)
