"""Airflow's records of the DAG runs of a measurement."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.errors import StackError
from stack.release import DAG_ID, ENDED, WATCH_DAG_ID, Release

PAGE = 100


class AirflowRuns:
    """DAG runs of `release_onnx` and of `watch_training` in one stack."""

    def __init__(self, context: Context) -> None:
        self.api = AirflowApi(context)

    def await_dags(self) -> None:
        """Wait until Airflow has parsed both DAGs."""
        Release(self.api, "none").await_dags()

    def releases(self, training_runs: Sequence[str]) -> list[dict[str, Any]]:
        """Return every DAG run that releases one of the training runs."""
        ids = set(training_runs)
        rows = self._pages(f"/dags/{DAG_ID}/dagRuns", "dag_runs")
        return [row for row in rows if (row["conf"] or {}).get("training_run_id") in ids]

    def watches(self, run_type: str | None = None) -> list[dict[str, Any]]:
        """Return the DAG runs of `watch_training`, or those of one type."""
        rows = self._pages(f"/dags/{WATCH_DAG_ID}/dagRuns", "dag_runs")
        return [row for row in rows if run_type in (None, row["run_type"])]

    def release_tasks(self) -> list[dict[str, Any]]:
        """Return every task instance of `release_onnx`, with state and duration in seconds of its last try."""
        return self._pages(f"/dags/{DAG_ID}/dagRuns/~/taskInstances", "task_instances")

    def watch_tasks(self) -> list[dict[str, Any]]:
        """Return every task instance of `watch_training`."""
        return self._pages(f"/dags/{WATCH_DAG_ID}/dagRuns/~/taskInstances", "task_instances")

    def log(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the lines of the log of a task instance's last try."""
        path = f"/dags/{task['dag_id']}/dagRuns/{quote(task['dag_run_id'], safe='')}/taskInstances/{task['task_id']}"
        log = self.api.get(f"{path}/logs/{task['try_number']}", full_content="true")
        return list(log["content"])

    def summary(self, watch_dag_run_id: str) -> dict[str, Any]:
        """Return the report of a DAG run of `watch_training`, empty without one."""
        return dict(self.api.xcom(WATCH_DAG_ID, watch_dag_run_id, "start_releases") or {})

    def backfills(self) -> list[dict[str, Any]]:
        """Return the backfills of `watch_training`."""
        return list(self.api.get("/backfills", dag_id=WATCH_DAG_ID)["backfills"])

    def _pages(self, path: str, key: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while True:
            page = self.api.get(path, limit=PAGE, offset=len(rows))
            rows += page[key]
            if not page[key] or len(rows) >= page["total_entries"]:
                return rows


def wait_for(problem: str, condition: Callable[[], bool], timeout_s: float, poll_s: float = 1.0) -> None:
    """Wait for a condition; raises `StackError` with the problem after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise StackError(f"After {timeout_s:.0f} s: {problem}.")
        time.sleep(poll_s)


def ended(rows: Sequence[dict[str, Any]]) -> int:
    """Count the DAG runs that succeeded or failed."""
    return sum(row["state"] in ENDED for row in rows)


def states(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Count DAG runs or tasks by state."""
    return dict(Counter(str(row["state"]) for row in rows))


def started_at_s(row: dict[str, Any]) -> float | None:
    """Return the start of a DAG run in seconds since 1970; None while it is queued."""
    text = row["start_date"]
    return datetime.fromisoformat(text).timestamp() if text else None
