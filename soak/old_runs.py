"""One backfill over thousands of finished training runs: time of the plan, and memory of scheduler and triggerer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from urllib.parse import quote

import mlflow
import sqlalchemy
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
BACKFILL_S = 120.0
_PLAN_MAX_S = 300.0
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
    """Insert runs through MLflow's table definitions: its server needs 20 ms for each. Their files go to the store."""
    client = mlflow.MlflowClient(context.mlflow_url, context.mlflow_url)
    experiment = client.get_experiment_by_name(name) or client.get_experiment(client.create_experiment(name))
    ids = [uuid.uuid4().hex for _ in range(count)]
    end_ms = int(1000 * end.timestamp())
    rows = (
        {
            "run_uuid": one, "name": f"old-{number}", "user_id": "load", "status": "FINISHED", "start_time": number,
            "end_time": end_ms + number, "lifecycle_stage": "active",
            "artifact_uri": f"{experiment.artifact_location}/{one}/artifacts",
            "experiment_id": int(experiment.experiment_id),
        }
        for number, one in enumerate(ids)
    )  # fmt: skip
    with sqlalchemy.create_engine(postgres.uri(context.layout, postgres.MLFLOW)).begin() as connection:
        for some in _parts(rows):
            connection.execute(tracking.SqlRun.__table__.insert(), some)
    store = s3_client(context)
    root = experiment.artifact_location.removeprefix("mlflow-artifacts:/").strip("/")

    def put(one: str) -> None:
        for name, text in (("MLmodel", _MLMODEL), ("data/model.pt2", b"x")):
            store.put_object(Bucket="mlflow", Key=f"{root}/{one}/artifacts/model/{name}", Body=text)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, ids))


def _parts(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while some := list(islice(rows, _ROWS_AT_ONCE)):
        yield some
