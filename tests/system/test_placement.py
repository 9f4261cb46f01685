"""Placement in a real scheduler and API server: on creation, on a retry, after a clear."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stack import airflow, postgres, processes
from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.credentials import Credentials
from stack.layout import Layout
from stack.ports import Ports

pytestmark = pytest.mark.system

TIMEOUT_S = 400.0
PLACEMENT = {"export": {"queue": "exporting"}}
# The first try of the export fails. The second returns the queue of its task instance.
DAG_FILE = """
from datetime import timedelta
from airflow.sdk import DAG, BaseOperator
from airflow_onnx.deployment import placement


class FailsOnceOperator(BaseOperator):
    def execute(self, context):
        if context["ti"].try_number == 1:
            raise RuntimeError("once")
        return context["ti"].queue


class PlainOperator(BaseOperator):
    def execute(self, context):
        return context["ti"].queue


retries = {"retries": 1, "retry_delay": timedelta(seconds=1)}
with DAG("release_onnx", schedule=None, default_args={**retries, **placement.arguments("light")}):
    PlainOperator(task_id="before") >> FailsOnceOperator(task_id="export", **placement.arguments("export"))
"""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowApi]:
    """Airflow alone, with a placement."""
    home = tmp_path_factory.mktemp("placement")
    context = _context(home)
    database = postgres.command(context.layout)
    postgres.prepare(context.layout)
    processes.start(context.layout, database)
    processes.await_ready(context.layout, postgres.NAME, partial(postgres.is_healthy, context.layout))
    airflow.prepare(context)
    commands = airflow.commands(context)
    own = {
        "AIRFLOW__CORE__DAGS_FOLDER": str(_dags(home)),
        "AIRFLOW__ONNX_RELEASE__PLACEMENT": json.dumps(PLACEMENT),
    }
    try:
        for command in commands:
            processes.start(context.layout, dataclasses.replace(command, env=command.env | own))
        client = AirflowApi(context)
        _await(lambda: airflow.is_healthy(context) and client.call("GET", "/dags/release_onnx").ok, context)
        yield client
    finally:
        processes.stop(context.layout, [command.name for command in commands])
        processes.stop(context.layout, [postgres.NAME])


def _context(home: Path) -> Context:
    layout = Layout(home / "state")
    layout.create()
    return Context(layout, Ports.free(), Credentials.generate())


def _dags(home: Path) -> Path:
    folder = home / "dags"
    folder.mkdir()
    (folder / "release.py").write_text(DAG_FILE)
    return folder


def _await(holds: Any, context: Context | None = None) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        logs = context and "\n".join(processes.log_tail(context.layout, name) for name in airflow.BACKGROUND)
        assert time.monotonic() < deadline, logs
        time.sleep(0.5)


def _run(api: AirflowApi, run_id: str, conf: dict[str, Any]) -> str:
    """Release, and return the DAG run's path when it has ended well."""
    api.post("/dags/release_onnx/dagRuns", {"dag_run_id": run_id, "conf": conf, "logical_date": None})
    path = f"/dags/release_onnx/dagRuns/{run_id}"
    _await(lambda: api.get(path)["state"] in ("success", "failed"))
    assert api.get(path)["state"] == "success"
    return path


def test_a_task_keeps_the_queue_of_its_kind(api: AirflowApi) -> None:
    run_id, queue = "placed", "exporting"
    path = _run(api, run_id, {})
    tries = api.get(f"{path}/taskInstances/export/tries")["task_instances"]
    assert [(one["try_number"], one["queue"]) for one in tries] == [(1, queue), (2, queue)]
    assert api.get(f"{path}/taskInstances/before")["queue"] == "default"
    assert api.xcom("release_onnx", run_id, "export") == queue

    body = {"dry_run": False, "dag_run_id": run_id, "task_ids": ["export"], "only_failed": False}
    api.post("/dags/release_onnx/clearTaskInstances", body)
    _await(lambda: api.get(f"{path}/taskInstances/export")["try_number"] == 3)
    _await(lambda: api.get(path)["state"] == "success")
    assert api.get(f"{path}/taskInstances/export")["queue"] == queue
    assert api.xcom("release_onnx", run_id, "export") == queue
