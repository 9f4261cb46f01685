"""One task in a process of its own, started by Airflow's supervisor, with its log as Airflow writes it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from airflow import settings
from airflow.executors.workloads.base import BundleInfo
from airflow.executors.workloads.task import TaskInstanceDTO
from airflow.sdk.api.client import Client
from airflow.sdk.execution_time import supervisor

_DAG_RUN: dict[str, Any] = {
    "dag_id": "release_onnx", "run_id": "manual__1", "run_type": "manual", "state": "running", "logical_date": None,
    "data_interval_start": None, "data_interval_end": None, "end_date": None, "partition_key": None,
    "start_date": "2026-01-01T00:00:00Z", "run_after": "2026-01-01T00:00:00Z", "consumed_asset_events": [],
}  # fmt: skip


def run_task(
    patch: pytest.MonkeyPatch,
    folder: Path,
    code: str,
    conf: dict[str, Any],
    is_cancelled: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Run the task ``t`` of a DAG file ``d`` and return the entries of its log.

    :param patch: sets the variables that Airflow reads.
    :param folder: an empty folder for the DAG file and the log.
    :param code: the content of the DAG file.
    :param conf: the parameters of the DAG run.
    :param is_cancelled: True once a person has marked the task, which Airflow's answer to a heartbeat says.
    """
    (folder / "d.py").write_text(code)
    # Airflow has read the option when it was imported.
    patch.setattr(settings, "DAGS_FOLDER", str(folder))
    # The supervisor checks at this interval that the process has ended.
    patch.setattr(supervisor, "MIN_HEARTBEAT_INTERVAL", 0.2)
    patch.setenv("AIRFLOW__API__BASE_URL", "http://airflow.test")
    patch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(folder))

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/heartbeat") and is_cancelled():
            return httpx.Response(409, json={"detail": {"reason": "not_running", "message": "marked"}})
        if "hitlDetails" in request.url.path:
            return httpx.Response(201, json=json.loads(request.content))
        started = {"dag_run": _DAG_RUN | {"conf": conf}, "max_tries": 3, "should_retry": True}
        return httpx.Response(200, json=started if request.url.path.endswith("/run") else {"text": "ok"})

    supervisor.supervise_task(
        ti=TaskInstanceDTO(
            id=uuid.uuid4(), dag_version_id=uuid.uuid4(), task_id="t", dag_id="d", run_id="manual__1", try_number=1,
            map_index=-1, pool_slots=1, queue="default", priority_weight=1,
        ),
        bundle_info=BundleInfo(name="dags-folder", version=None),
        dag_rel_path="d.py",
        token="",
        client=Client(base_url="http://airflow.test", token="", transport=httpx.MockTransport(answer)),
        log_path="t.log",
    )  # fmt: skip
    return [json.loads(line) for line in (folder / "t.log").read_text().splitlines()]
