"""MLflow databases with many old training runs that ended and were handled long ago.

MLflow's store needs 20 ms per run. Ten thousand runs are inserted through its table definitions instead.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import mlflow
import sqlalchemy
from mlflow.store.model_registry.dbmodels import models as registry
from mlflow.store.tracking.dbmodels import models as tracking

from bench.servers import EXPERIMENT, MODEL_NAME
from stack.context import Context
from stack.minio import RELEASE_BUCKET

HOUR_MS = 3_600_000
SPAN_H = {"100_days": 100 * 24.0, "24_h": 24.0}
"""Hours over which the ends of old runs are spread evenly: a usual store, and one filled within a day."""

_PARAMS = {"lr": "0.001", "batch_size": "64", "epochs": "40", "optimizer": "adamw", "seed": "7", "size": "tiny"}
_METRICS = ("train_loss", "val_loss", "val_mae")
# One run in ten was refused, and one in ten has no model.
_KINDS = ("released",) * 8 + ("refused", "skipped")
_ROWS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class OldRun:
    """Old run to insert."""

    run_id: str
    number: int
    ended_at_ms: int = 0

    @property
    def kind(self) -> str:
        """Result of its release."""
        return _KINDS[self.number % len(_KINDS)]

    @property
    def sha256(self) -> str:
        """The artifact's digest."""
        return hashlib.sha256(self.run_id.encode()).hexdigest()

    def tags(self) -> dict[str, str]:
        """Return the tags of MLflow's client, of the watch and of the release."""
        own = {"mlflow.user": "bench", "mlflow.runName": f"old-{self.number}", "mlflow.source.name": "train.py"}
        if self.kind == "skipped":
            return own | {"onnx_release.watched": "skip: the run has no PyTorch model"}
        tried = {
            "watched": "new",
            "status": self.kind,
            "attempted_at": f"{datetime.fromtimestamp(self.ended_at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "reason": "" if self.kind == "released" else "parity: positions: mae 2.1e-04 is not below 1.0e-05",
            "registered_model": MODEL_NAME,
            "dag_run_id": f"release__{self.run_id}",
            "dag_run_url": f"http://127.0.0.1/dags/release_onnx/runs/release__{self.run_id}",
            "rerun_url": f"http://127.0.0.1/onnx-release/trigger?conf={'x' * 200}",
            "sha256": self.sha256,
        }
        done = {"wall_s": "41.5", "version": str(self.number + 1)} if self.kind == "released" else {}
        return own | {f"onnx_release.{key}": value for key, value in (tried | done).items()}


class Store:
    """Database of one server, changed directly while no other client writes to the server.

    :param database: the server's database.
    :param metrics: the metrics of each old run beside those of its training.
    """

    def __init__(self, context: Context, database: str, metrics: Sequence[str] = ("onnx_release/size_bytes",)) -> None:
        self.context = context
        self._engine = sqlalchemy.create_engine(database)
        self._client = mlflow.MlflowClient(context.mlflow_url, context.mlflow_url)
        self._experiment_id = self._client.create_experiment(EXPERIMENT)
        self._new: list[str] = []
        self._metrics = (*_METRICS, *metrics)

    def fill(self, count: int, *, last_ms: int = 0, step_ms: int = 0) -> None:
        """Insert old runs, and a model version for each released one.

        :param last_ms: the end of the newest run, in milliseconds since 1970; each other one ended `step_ms` before.
        """
        runs = [OldRun(uuid.uuid4().hex, number, last_ms - number * step_ms) for number in range(count)]
        self._client.create_registered_model(MODEL_NAME)
        self._insert(tracking.SqlRun, (self._run(run) for run in runs))
        self._insert(tracking.SqlTag, (_row(run, k, v) for run in runs for k, v in run.tags().items()))
        self._insert(tracking.SqlParam, (_row(run, k, v) for run in runs for k, v in _PARAMS.items()))
        for table in (tracking.SqlMetric, tracking.SqlLatestMetric):
            self._insert(table, (_row(run, name, _metric(run)) for run in runs for name in self._metrics))
        released = [run for run in runs if run.kind == "released"]
        self._insert(registry.SqlModelVersion, (_version(number, run) for number, run in enumerate(released, 1)))
        self._insert(registry.SqlModelVersionTag, (_version_tag(number, run) for number, run in enumerate(released, 1)))

    def spread(self, hours: float) -> None:
        """Spread the ends of the old runs evenly over the last hours; the latest was a minute ago."""
        table, now_ms = tracking.SqlRun.__table__, int(time.time() * 1000) - 60_000
        with self._engine.begin() as connection:
            query = sqlalchemy.select(table.c.run_uuid).where(table.c.run_uuid.not_in(self._new))
            ids = list(connection.execute(query.order_by(table.c.start_time)).scalars())
            ends = [now_ms - int(hours * HOUR_MS * number / len(ids)) for number in range(len(ids))]
            update = table.update().where(table.c.run_uuid == sqlalchemy.bindparam("id"))
            update = update.values(end_time=sqlalchemy.bindparam("end"))
            connection.execute(update, [{"id": run_id, "end": end} for run_id, end in zip(ids, ends, strict=True)])

    def set_new(self, count: int) -> None:
        """End new runs without a model now, and delete those of an earlier call."""
        for run_id in self._new:
            self._client.delete_run(run_id)
        self._new = [self._client.create_run(self._experiment_id).info.run_id for _ in range(count)]
        for run_id in self._new:
            self._client.set_terminated(run_id)

    def _run(self, run: OldRun) -> dict[str, Any]:
        artifacts = f"mlflow-artifacts:/{self._experiment_id}/{run.run_id}/artifacts"
        return {
            "run_uuid": run.run_id,
            "name": f"old-{run.number}",
            "user_id": "bench",
            "status": "FINISHED",
            "start_time": run.number,
            "end_time": run.ended_at_ms,
            "lifecycle_stage": "active",
            "artifact_uri": artifacts,
            "experiment_id": int(self._experiment_id),
        }

    def _insert(self, model: Any, rows: Iterator[dict[str, Any]]) -> None:
        with self._engine.begin() as connection:
            while some := list(islice(rows, _ROWS_AT_ONCE)):
                connection.execute(model.__table__.insert(), some)


def _row(run: OldRun, key: str, value: Any) -> dict[str, Any]:
    return {"run_uuid": run.run_id, "key": key, "value": value}


def _metric(run: OldRun) -> float:
    return 0.5 + run.number % 97 / 100


def _version(number: int, run: OldRun) -> dict[str, Any]:
    source = f"s3://{RELEASE_BUCKET}/{MODEL_NAME}/{run.run_id}/{run.sha256[:16]}"
    return {"name": MODEL_NAME, "version": number, "run_id": run.run_id, "source": source}


def _version_tag(number: int, run: OldRun) -> dict[str, Any]:
    return {"name": MODEL_NAME, "version": number, "key": "onnx_release.sha256", "value": run.sha256}
