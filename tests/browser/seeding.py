"""Releases in an MLflow server as the tasks leave them, written over its REST API without a training."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from airflow_onnx.tracking.version_tags import version_tags
from onnx_release.errors import TrainedModelRefused
from onnx_release.records import AliasMove, BenchmarkReport, CheckReport, TrainedModel
from onnx_release.report.gates import warning
from onnx_release.report.markdown import summary_markdown
from onnx_release.report.metrics import release_metrics
from onnx_release.report.release_report import build_report
from onnx_release.report.short_view import release_state
from onnx_release.training_runs import tags
from tests.core import records
from tests.core.records import side

HOSTILE = "<script>alert(1)</script>"
NAN = (
    "The weights hold NaN or infinity: n.0.weight has 1 of 160. The training diverged: train again with a lower "
    "learning rate or clipped gradients."
)


@dataclass
class Seeder:
    """A client of one MLflow server."""

    url: str
    experiment_id: str = ""

    def call(self, path: str, **body: Any) -> Any:
        answer = httpx.post(f"{self.url}/api/2.0/mlflow/{path}", json=body, timeout=120)
        answer.raise_for_status()
        return answer.json()

    def experiment(self, name: str) -> None:
        """Make an experiment and use it for the following runs."""
        self.experiment_id = self.call("experiments/create", name=name)["experiment_id"]

    def run(self, name: str, *, ago: timedelta, metrics: dict[str, float] | None = None, **found: str) -> str:
        """Make a training run with tags of a release, whose newest attempt was some time ago."""
        at = datetime.now(UTC) - ago
        end_ms = int(1000 * at.timestamp())
        run = self.call("runs/create", experiment_id=self.experiment_id, run_name=name, start_time=end_ms - 60_000)
        run_id = str(run["run"]["info"]["run_id"])
        named = {f"{tags.ROOT}.{key}": text for key, text in found.items()}
        named |= {tags.ATTEMPTED_AT: f"{at:%Y-%m-%dT%H:%M:%SZ}"}
        named.setdefault(tags.LAST_ATTEMPT, f"{found['status']} {at:%Y-%m-%dT%H:%M:%SZ}")
        conf = {"training_run_id": run_id, "model_name": found.get("registered_model", ""), "mae_max": 1e-4}
        named.setdefault(tags.RERUN_URL, f"http://evil.test/onnx-release/trigger?conf={json.dumps(conf)}")
        self.call(
            "runs/log-batch",
            run_id=run_id,
            tags=[{"key": key, "value": value} for key, value in named.items()],
            metrics=[
                {"key": key, "value": value, "timestamp": end_ms, "step": 0} for key, value in (metrics or {}).items()
            ],
        )
        self.call("runs/update", run_id=run_id, status="FINISHED", end_time=end_ms)
        return run_id

    def file(self, run_id: str, path: str, content: str) -> None:
        """Upload a file into the artifacts of a run."""
        run = httpx.get(f"{self.url}/api/2.0/mlflow/runs/get", params={"run_id": run_id}).json()["run"]
        root = run["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
        answer = httpx.put(f"{self.url}/api/2.0/mlflow-artifacts/artifacts/{root}/{path}", content=content.encode())
        answer.raise_for_status()

    def version(self, name: str, run_id: str, aliases: tuple[str, ...], found: dict[str, str]) -> int:
        """Make a version of a registered model."""
        with contextlib.suppress(httpx.HTTPStatusError):  # It exists.
            self.call("registered-models/create", name=name)
        rows = [{"key": key, "value": text} for key, text in found.items()]
        made = self.call(
            "model-versions/create",
            name=name,
            source=f"s3://onnx-models/{name}/{run_id}",
            run_id=run_id,
            tags=rows,
        )
        number = int(made["model_version"]["version"])
        for alias in aliases:
            self.call("registered-models/alias", name=name, alias=alias, version=str(number))
        return number

    def released(
        self, run_name: str, model: str, *, ago: timedelta, speedup: float = 2.16, settled: bool = True,
        aliases: tuple[str, ...] = (), size_bytes: int = 113_000_000,
    ) -> str:  # fmt: skip
        """Make a run with a released version, its metrics and its report."""
        slower, low, high = speedup, 0.94 * speedup, 1.06 * speedup
        batches = tuple(
            records.batch(
                batch_size=size, speedup=slower, speedup_low=low if settled else 0.7,
                speedup_high=high if settled else 9.9,
                conclusive=settled,
                reference=side(8.0 * size), candidate=side(8.0 * size / speedup),
            )
            for size in (1, 8, 32)
        )  # fmt: skip
        verdict = "passed" if settled else "not settled"
        latency = records.latency(
            batches=batches, verdict=verdict, budget={"batch_size": 1, "speedup_min": 1.0, "on_miss": "warn"}
        )
        parity = records.parity(limits={"mae_max": 1e-5, "sqnr_db_min": 60.0})
        artifact = records.artifact(size_bytes=size_bytes)
        check = CheckReport(sha256=artifact.sha256, passed=True, findings=(), opset=20, node_count=108)
        report = build_report(
            TrainedModel(training_run_id="0", model_uri="models:/m-1", run_name=run_name, model_name=model),
            artifact, check, BenchmarkReport(sha256=artifact.sha256, passed=True, parity=parity, latency=latency),
        )  # fmt: skip
        metrics = release_metrics(report)
        run_id = self.run(
            run_name, ago=ago, metrics=metrics, status="released", registered_model=model, sha256=artifact.sha256,
            latency_verdict=verdict, warning=warning(report), precision="exact", dag_run_id=f"release__{run_name}", dag_run_url=f"http://evil.test/dags/release_onnx/runs/release__{run_name}",
        )  # fmt: skip
        number = self.version(model, run_id, aliases, version_tags(report, artifact, release_state(report)))
        self.tag(run_id, version=str(number))
        report = report.replace(trained_model=report.trained_model.replace(training_run_id=run_id))
        self.file(run_id, f"{tags.ROOT}/{model}/report.json", json.dumps(report.to_dict()))
        self.file(run_id, f"{tags.ROOT}/{model}/summary.md", summary_markdown(report))
        return run_id

    def refused(self, run_name: str, model: str, *, ago: timedelta, reason: str = NAN) -> str:
        """Make a run whose release was refused, with its report."""
        refusal = TrainedModelRefused("The weights", "hold NaN or infinity", "Train again.", code="nan_weights")
        trained = TrainedModel(training_run_id="0", model_uri="models:/m-1", run_name=run_name, model_name=model)
        report = build_report(trained, None, None, None, refusal).replace(reasons=(reason,))
        run_id = self.run(
            run_name, ago=ago, status="refused", registered_model=model, reason=reason, reason_code="nan_weights",
            dag_run_id=f"release__{run_name}", dag_run_url=f"http://evil.test/dags/release_onnx/runs/release__{run_name}",
        )  # fmt: skip
        report = report.replace(trained_model=trained.replace(training_run_id=run_id))
        self.file(run_id, f"{tags.ROOT}/{model}/report.json", json.dumps(report.to_dict()))
        return run_id

    def moved(self, model: str, *moves: AliasMove) -> None:
        """Write the alias log of a model."""
        log = json.dumps([move.to_dict() for move in moves])
        self.call("registered-models/set-tag", name=model, key=f"{tags.ALIAS_LOG}.1", value=log)

    def logged(self, run_id: str, *, params: dict[str, str], metrics: dict[str, float]) -> None:
        """Log parameters and metrics of the training."""
        self.call(
            "runs/log-batch",
            run_id=run_id,
            params=[{"key": key, "value": text} for key, text in params.items()],
            metrics=[{"key": key, "value": value, "timestamp": 1, "step": 0} for key, value in metrics.items()],
        )

    def tag(self, run_id: str, **found: str) -> None:
        """Set more tags of a release."""
        self.call(
            "runs/log-batch", run_id=run_id, tags=[{"key": f"{tags.ROOT}.{k}", "value": v} for k, v in found.items()]
        )
