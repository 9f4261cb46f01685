"""One backfill over thousands of finished training runs: time of the plan, and memory of scheduler and triggerer."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from urllib.parse import quote

import mlflow
import sqlalchemy
from mlflow.entities.logged_model_status import LoggedModelStatus
from mlflow.store.tracking.dbmodels import models as tracking

from bench.figure import progress
from bench.servers import EXPERIMENT
from bench.watch import airflow_runs
from bench.watch.training_runs import Watched
from soak.usage import sampled
from stack import postgres
from stack.context import Context
from stack.minio import s3_client
from stack.release import WATCH_DAG_ID

DAYS_AGO = 3
# The backfill starts releases for this time. All of them would take hours.
BACKFILL_S = 90.0
_PLAN_MAX_S = 600.0
_ROWS_AT_ONCE = 500
_MLMODEL = b"flavors:\n  pytorch:\n    model_data: data\n    serialization_format: pt2\nmodel_uuid: none\n"
_SERVICES = ("airflow-scheduler", "airflow-triggerer")


def plan(context: Context, count: int, experiment: str) -> dict[str, Any]:
    """Insert finished runs with a model each into an experiment, and plan them.

    :param experiment: its name. It is created if it does not exist.
    """
    end = datetime.now(UTC) - timedelta(days=DAYS_AGO)
    began = time.monotonic()
    _insert(context, count, end, experiment)
    progress(f"{count} old runs inserted in {time.monotonic() - began:.0f} s")
    watched = Watched(context)
    span = {"since": (end - timedelta(hours=1)).isoformat(), "until": (end + timedelta(hours=1)).isoformat()}
    with sampled(context) as planning:
        planned = _watch_run(watched, span | {"dry_run": True, "experiments": [experiment]})
        row = _await_end(watched, planned)
    return {
        "runs": count,
        "plan_totals": watched.runs.summary(planned).get("totals", {}),
        "plan_task_s": row["duration"],
        "plan_task_peak_mb": round(planning.peak_bytes("tasks") / 1e6),
        "span": span,
    }


def measure(context: Context, count: int) -> dict[str, Any]:
    """Insert finished runs with a model each, plan them, and start their backfill."""
    planned = plan(context, count, EXPERIMENT)
    span, watched = planned.pop("span"), Watched(context)
    with sampled(context) as usage:
        started = _watch_run(watched, span | {"at_once": 8})
        time.sleep(BACKFILL_S)
    path = f"/dags/{WATCH_DAG_ID}/dagRuns/{quote(started, safe='')}"
    state = watched.runs.api.get(path)["state"]
    watched.runs.api.patch(path, {"state": "failed"})
    return planned | {
        "backfill_state": state,
        "peak_mb": {name: round(usage.peak_bytes(name) / 1e6) for name in _SERVICES},
        "growth": {name: round(usage.growth(name), 3) for name in _SERVICES},
    }


def _watch_run(watched: Watched, conf: dict[str, Any]) -> str:
    made = watched.runs.api.post(f"/dags/{WATCH_DAG_ID}/dagRuns", {"logical_date": None, "conf": conf})
    return str(made["dag_run_id"])


def _await_end(watched: Watched, dag_run_id: str) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        return [one for one in watched.runs.watch_tasks() if one["dag_run_id"] == dag_run_id]

    def ended() -> bool:
        return any(one["state"] in ("success", "failed") for one in found())

    airflow_runs.wait_for("the plan has not ended", ended, _PLAN_MAX_S)
    return found()[0]


def _insert(context: Context, count: int, end: datetime, name: str) -> None:
    """Insert runs through MLflow's table definitions: its server needs 20 ms for each. Their files go to the store.

    Half of them are as MLflow 3 logs a model, the others as MLflow 2.
    """
    client = mlflow.MlflowClient(context.mlflow_url, context.mlflow_url)
    experiment = client.get_experiment_by_name(name) or client.get_experiment(client.create_experiment(name))
    made = [
        _OldRun(uuid.uuid4().hex, number, int(1000 * end.timestamp()) + number, experiment) for number in range(count)
    ]
    with sqlalchemy.create_engine(postgres.uri(context.layout, postgres.MLFLOW)).begin() as connection:
        for some in _parts(made):
            connection.execute(tracking.SqlRun.__table__.insert(), [one.row for one in some])
            if old := [one.history for one in some if not one.model_id]:
                connection.execute(tracking.SqlTag.__table__.insert(), old)
            if new := [one for one in some if one.model_id]:
                connection.execute(tracking.SqlLoggedModel.__table__.insert(), [one.logged_model for one in new])
                connection.execute(tracking.SqlInput.__table__.insert(), [one.output for one in new])
    store = s3_client(context)

    def put(one: _OldRun) -> None:
        for file, text in (("MLmodel", _MLMODEL), ("data/model.pt2", b"x")):
            key = f"{one.model_folder}/{file}".removeprefix("mlflow-artifacts:/").strip("/")
            store.put_object(Bucket="mlflow", Key=key, Body=text)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, made))


@dataclass(frozen=True, slots=True)
class _OldRun:
    """Rows of MLflow's tables for a run with a model. `ended_ms` is in milliseconds since 1970."""

    run_id: str
    number: int
    ended_ms: int
    experiment: Any

    @property
    def model_id(self) -> str:
        """The id of the logged model of MLflow 3, empty for a run of MLflow 2."""
        return f"m-{self.run_id}" if self.number % 2 else ""

    @property
    def model_folder(self) -> str:
        root = self.experiment.artifact_location
        return f"{root}/models/{self.model_id}/artifacts" if self.model_id else f"{root}/{self.run_id}/artifacts/model"

    @property
    def row(self) -> dict[str, Any]:
        return {
            "run_uuid": self.run_id, "name": f"old-{self.number}", "user_id": "load", "status": "FINISHED",
            "start_time": self.number, "end_time": self.ended_ms, "lifecycle_stage": "active",
            "artifact_uri": f"{self.experiment.artifact_location}/{self.run_id}/artifacts",
            "experiment_id": int(self.experiment.experiment_id),
        }  # fmt: skip

    @property
    def history(self) -> dict[str, str]:
        logged = {"run_id": self.run_id, "artifact_path": "model", "utc_time_created": "2024-05-01 10:11:12.123456"}
        return {"run_uuid": self.run_id, "key": "mlflow.log-model.history", "value": json.dumps([logged])}

    @property
    def logged_model(self) -> dict[str, Any]:
        return {
            "model_id": self.model_id, "experiment_id": int(self.experiment.experiment_id), "name": "model",
            "artifact_location": self.model_folder, "creation_timestamp_ms": self.ended_ms,
            "last_updated_timestamp_ms": self.ended_ms, "status": LoggedModelStatus.READY.to_int(), "model_type": "",
            "lifecycle_stage": "active", "source_run_id": self.run_id,
        }  # fmt: skip

    @property
    def output(self) -> dict[str, Any]:
        return {
            "input_uuid": uuid.uuid4().hex, "source_type": "RUN_OUTPUT", "source_id": self.run_id,
            "destination_type": "MODEL_OUTPUT", "destination_id": self.model_id, "step": 0,
        }  # fmt: skip


def _parts(runs: list[_OldRun]) -> Iterator[list[_OldRun]]:
    left = iter(runs)
    while some := list(islice(left, _ROWS_AT_ONCE)):
        yield some
