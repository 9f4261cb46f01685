"""Fixture class for tests of the watch: an MLflow experiment with finished runs, and a stand-in for Airflow."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.operators.start_releases import StartReleasesOperator
from tests.edge.airflow_stand_in import Supervisor

HOUR_MS = 3_600_000


@dataclass(eq=False)
class Lab:
    """A separate experiment with runs whose end can be set, and a stand-in for Airflow."""

    hook: MlflowHook
    supervisor: Supervisor
    experiment_id: str
    model_folder: Path

    def run(self, *, ended_h_ago: float = 0.1, status: str = "FINISHED", model: bool = True, name: str = "r") -> str:
        """Create a run that has ended, with the model's files among its artifacts as in MLflow 2."""
        run_id = str(self.hook.client.create_run(self.experiment_id, run_name=name).info.run_id)
        if model:
            self.hook.client.log_artifacts(run_id, str(self.model_folder), "model")
        self.hook.client.set_terminated(run_id, status, int(time.time() * 1000 - ended_h_ago * HOUR_MS))
        return run_id

    def tags(self, run_id: str) -> dict[str, str]:
        return dict(self.hook.client.get_run(run_id).data.tags)

    def operator(self, params: dict[str, Any] | None = None, **arguments: Any) -> StartReleasesOperator:
        """Return the operator of a watch with one route, which has these parameters."""
        routes = [{"experiment": "*", "dag_id": "release_onnx", "params": params or {}}]
        given = {"experiments": json.dumps([self.experiment_id]), "routes": json.dumps(routes)} | arguments
        return StartReleasesOperator(task_id="start_releases", **given)

    def start(self, run_type: str = "scheduled", **arguments: Any) -> Any:
        return self.operator(**arguments).execute(context(run_type))

    def backfill(self, hours: float = 24, **arguments: Any) -> Any:
        return self.operator(**arguments).execute(context("backfill", hours))


def context(run_type: str, hours: float = 24) -> Any:
    now = datetime.now(UTC)
    run = SimpleNamespace(
        dag_id="watch_training",
        run_type=run_type,
        run_id="watch",
        data_interval_start=now - timedelta(hours=hours),
        data_interval_end=now,
    )
    return {"dag_run": run}


def by_run(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {row["training_run_id"]: (row["action"], row["reason"]) for row in report["runs"]}
