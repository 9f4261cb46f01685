"""One deployment for all tests here: brought up before the first, gone after the last."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator

import pytest

from deploy import env
from deploy.compose import REPO, Project, require_engine
from stack.ports import Ports, free_ports
from stack.release import Release
from tests.system.embedded import QUICK

from .deployment import Deployment

WORKERS = 2


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The file as it stands, with two workers of one slot each; its volumes are removed at the end."""
    require_engine()
    home = tmp_path_factory.mktemp("compose")
    airflow, mlflow, minio, console = free_ports(4)
    settings = {
        "AIRFLOW_PORT": airflow,
        "MLFLOW_PORT": mlflow,
        "MINIO_PORT": minio,
        "MINIO_CONSOLE_PORT": console,
        # One slot: while a worker has a task, the next goes to the other.
        "WORKER_CONCURRENCY": 1,
        "WORKER_GRACE": "20s",
        "TASK_HEARTBEAT_TIMEOUT_S": 20,
        "WATCH_EXPERIMENTS": "demo",
        "WATCH_ROUTES": json.dumps([{"experiment": "*", "params": QUICK}]),
    }
    env.complete(home / ".env")
    extra = {name: str(value) for name, value in settings.items()}
    name, file = f"onnx-test-{secrets.token_hex(4)}", REPO / "docker-compose.yaml"
    project = Project(env_file=home / ".env", name=name, file=file, extra=extra)
    try:
        project.build()
        project.up("--scale", f"airflow-worker={WORKERS}")
        started = Deployment(project, home, Ports(airflow=airflow, mlflow=mlflow, minio=minio))
        Release(started.api, "none").await_dags()
        yield started
    finally:
        project.run("down", "--volumes", "--remove-orphans")
