"""The tasks of `release_onnx` in order, on real services, with a stand-in for Airflow's task instance alone."""

from __future__ import annotations

import copy
import json
import shutil
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import torch
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk import Asset
from airflow.sdk.exceptions import DownstreamTasksSkipped
from airflow.sdk.execution_time.context import OutletEventAccessors
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn

from airflow_onnx import step_times, task_outcome
from airflow_onnx.events.model_assets import RELEASED_VERSIONS
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.operators.approve import OnnxApproveVersionOperator
from airflow_onnx.operators.check import OnnxCheckOperator
from airflow_onnx.operators.export import OnnxExportOperator
from airflow_onnx.operators.parity_latency import OnnxParityLatencyOperator
from airflow_onnx.operators.promote import MlflowPromoteModelOperator
from airflow_onnx.operators.register import MlflowRegisterOnnxOperator
from airflow_onnx.operators.tune import OnnxTuneOperator
from airflow_onnx.operators.upload import OnnxUploadToS3Operator
from airflow_onnx.operators.work_folder import CleanWorkFolderOperator, PrepareWorkFolderOperator
from airflow_onnx.sensors.mlflow_run import MlflowTrainingRunSensor

SIGNATURE = ModelSignature(
    Schema([TensorSpec(np.dtype("float32"), (-1, 8), "signal")]),
    Schema([TensorSpec(np.dtype("float32"), (-1, 2), "positions"), TensorSpec(np.dtype("float32"), (-1, 2), "spread")]),
)

TAG = "onnx_release"
# An asset of another team, which gets an event at each promotion.
CONSUMED = Asset("consumed")
BUCKET = "heimdall-models"
# The tasks in the order in which they run.
ORDER = ("wait", "prepare", "export", "tune", "check", "parity_latency", "upload", "register", "approve", "promote")
MEASURED = {"measure_min_s": 0.1, "measure_max_s": 0.5, "rounds_min": 10}


class TwoHeads(nn.Module):
    """A small model of the reference model's kind: one trunk, two named outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.2))
        self.positions, self.spread = nn.Linear(16, 2), nn.Linear(16, 2)

    def forward(self, signal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (B, 8) to two (B, 2)."""
        hidden = self.trunk(signal)
        return self.positions(hidden), nn.functional.softplus(self.spread(hidden)).clamp(0.01, 1.0)


def trained_run(*, run_name: str = "small", seed: int = 0, module: nn.Module | None = None) -> str:
    """Train the small model for a few steps into an MLflow run and return the run's id."""
    torch.manual_seed(seed)
    model = module or TwoHeads()
    signal = torch.randn(64, 8)
    if module is None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(20):
            positions, spread = model(signal)
            loss = nn.functional.gaussian_nll_loss(positions, signal[:, :2], spread.square())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with mlflow.start_run(run_name=run_name) as run:
        mlflow.pytorch.log_model(
            model.eval(),
            name="model",
            signature=SIGNATURE,
            input_example=signal[:4].numpy(),
            pip_requirements=["torch"],
        )
    return str(run.info.run_id)


@dataclass
class Release:
    """One DAG run. `returned` holds each task's record as XCom would; `tasks` its operator."""

    training_run_id: str
    model_name: str
    dag_run_id: str = "manual__1"
    params: dict[str, Any] = field(default_factory=dict)
    conf: dict[str, Any] = field(default_factory=dict)
    returned: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    pushed: dict[str, Any] = field(default_factory=dict)
    events: OutletEventAccessors = field(default_factory=OutletEventAccessors)
    skipped: set[str] = field(default_factory=set)
    # The states of the tasks, and the outcomes of those that did not succeed, by the ids in the DAG.
    states: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, Any] = field(default_factory=dict)
    # The ended tasks of the DAG run as Airflow returns them, with operator and duration in s.
    durations: list[dict[str, Any]] = field(default_factory=list)
    # The starts of the tasks.
    begins: dict[str, dict[str, Any]] = field(default_factory=dict)
    # The tasks of all releases that have the measuring slot or wait for it.
    measuring: int = 0
    running: str = ""
    # The arguments with which Airflow resumes the task that waits for a person.
    resumed_with: dict[str, Any] = field(default_factory=dict)
    tries: int = 1

    def _push(self, key: str, value: Any) -> None:
        if key == task_outcome.XCOM_KEY:
            self.outcomes[self.running] = value
        elif key == step_times.XCOM_KEY:
            self.begins[self.running] = value
        else:
            self.pushed[key] = value

    def _pull(self, task_ids: Any, key: str) -> Any:
        if key == step_times.XCOM_KEY:
            return [self.begins.get(task_id) for task_id in task_ids]
        return self.outcomes.get(task_ids) if key == task_outcome.XCOM_KEY else self.pushed.get(key)

    @property
    def context(self) -> Any:
        """The part of Airflow's context that operators read."""
        ti = SimpleNamespace(
            id=uuid.uuid4(),
            task_id=self.running,
            try_number=self.tries,
            max_tries=3,
            task=SimpleNamespace(retries=3, task_type="Task"),
            xcom_push=self._push,
            xcom_pull=self._pull,
            get_ti_count=lambda **_: self.measuring,
            get_task_states=lambda dag_id, run_ids: {run_ids[0]: dict(self.states)},
            get_task_breadcrumbs=lambda dag_id, run_id: self.durations,
            start_date=datetime.now(UTC),
        )
        dag_run = SimpleNamespace(
            dag_id="release_onnx", run_id=self.dag_run_id, start_date=datetime.now(UTC), conf=dict(self.conf)
        )
        return {"dag_run": dag_run, "ti": ti, "outlet_events": self.events}

    def run(self, *names: str) -> Any:
        """Run the tasks one after the other and return what the last one returned."""
        for name in names:
            if name in self.skipped:
                continue
            task = self.tasks[name] = getattr(self, f"_{name}")()
            self.running = task.task_id
            self.outcomes.pop(self.running, None)
            self.states[self.running] = "failed"
            try:
                self.returned[name] = self.tasks[name].execute(self.context)
            except DownstreamTasksSkipped as skip:
                # As Airflow does: the task has succeeded, and what it returned is what it pushed.
                self.returned[name] = self.pushed.pop("return_value")
                self.skipped.update(skip.tasks)
            self.states[self.running] = "success"
        return self.returned.get(names[-1])

    def to(self, last: str) -> Any:
        """Run all tasks up to `last`."""
        return self.run(*ORDER[: ORDER.index(last) + 1])

    def after(self, other: Release, last: str) -> Release:
        """Stand where `other` stood after its task `last`, with a copy of its artifact in a work folder of its own."""
        done = [name for name in ORDER[: ORDER.index(last) + 1] if name in other.returned]
        self.returned = {name: copy.deepcopy(other.returned[name]) for name in done}
        self.returned["wait"]["model_name"] = self.model_name
        self.skipped = set(other.skipped)
        self.run("prepare")
        for name in ("export", "tune"):
            if name in self.returned:
                self.returned[name]["staging_uri"] = f"{self.returned['prepare']}/artifact"
        shutil.copytree(other.artifact_folder, self.artifact_folder)
        return self

    def clean(self) -> None:
        """Run the tear-down, as Airflow does after success and failure."""
        self.running = "clean_work"
        CleanWorkFolderOperator(
            task_id="clean_work",
            work_uri=self.returned.get("prepare", ""),
            training_run_id=self.training_run_id,
            trained_model=self.returned.get("wait"),
            target_uri=self.pushed.get("target_uri", ""),
            **self._destination(),
            version=self.returned.get("promote"),
            promotion_outlets=[RELEASED_VERSIONS, CONSUMED],
        ).execute(self.context)

    @property
    def artifact_folder(self) -> Path:
        """The staged artifact on this disk."""
        return Path(self.returned["export"]["staging_uri"].removeprefix("file://"))

    def _wait(self) -> Any:
        return MlflowTrainingRunSensor(
            task_id="wait_for_training",
            training_run_id=self.training_run_id,
            model_name=self.model_name,
            log_to_run=True,
        )

    def _prepare(self) -> Any:
        return PrepareWorkFolderOperator(
            task_id="prepare_work",
            **self._destination(),
            files={"inputs_uri": self.params.get("inputs_uri", "")},
            **self._shared(),
        )

    def _shared(self) -> dict[str, Any]:
        return {"trained_model": self.returned["wait"], "log_to_run": True}

    def _destination(self) -> dict[str, Any]:
        return {"bucket": self.params.get("bucket", BUCKET), "prefix": self.params.get("prefix", "")}

    def _export(self) -> Any:
        return OnnxExportOperator(
            task_id="export",
            work_uri=self.returned["prepare"],
            opset=self.params.get("opset"),
            model_source=self.params.get("source"),
            inputs_uri=self.params.get("inputs_uri", ""),
            serving_layouts=self.params.get("serving_layouts", ()),
            optional_tasks={"tune": json.dumps(bool(self.params.get("tune")))},
            **self._shared(),
        )

    def _tune(self) -> Any:
        return OnnxTuneOperator(
            task_id="tune",
            artifact=self.returned["export"],
            work_uri=self.returned["prepare"],
            batch_sizes="[1, 4]",
            plan=MEASURED,
            model_source=self.params.get("source"),
            stage=self.params.get("stage", "none"),
            **self.params.get("tune", {}),
            **self._shared(),
        )

    @property
    def artifact(self) -> Any:
        """What goes on after the tuning, or after the export where a test left that out."""
        return self.returned.get("tune", self.returned["export"])

    def _check(self) -> Any:
        return OnnxCheckOperator(
            task_id="check",
            artifact=self.artifact,
            policy=self._policy(),
            stage=self.params.get("stage", "none"),
            rules=self.params.get("rules"),
            **self._shared(),
        )

    def _parity_latency(self) -> Any:
        return OnnxParityLatencyOperator(
            task_id="parity_latency",
            artifact=self.artifact,
            check=self.returned["check"],
            batch_sizes="[1, 4]",
            parity=self.params.get("parity", {}),
            # How fast it is does not matter to these tests; that it is measured does.
            budget={"on_miss": self.params.get("on_miss", "warn")} | self.params.get("budget", {}),
            plan=MEASURED,
            model_source=self.params.get("source"),
            inputs_uri=self.params.get("inputs_uri", ""),
            policy=self._policy(),
            rules=self.params.get("rules"),
            margins=self.params.get("margins"),
            evaluation_uri=self.params.get("evaluation_uri", ""),
            target_runtimes=self.params.get("target_runtimes", ()),
            **self._shared(),
        )

    def _judged(self) -> dict[str, Any]:
        return {
            "artifact": self.artifact,
            "check": self.returned["check"],
            "benchmark": self.returned["parity_latency"],
        }

    def _upload(self) -> Any:
        return OnnxUploadToS3Operator(
            task_id="upload",
            serving_layouts=self.params.get("serving_layouts", ()),
            **self._destination(),
            **self._judged(),
            **self._shared(),
        )

    def _register(self) -> Any:
        return MlflowRegisterOnnxOperator(
            task_id="register",
            artifact=self.artifact,
            uploaded=self.returned["upload"],
            policy=self._policy(),
            approval_task="approve",
            **self._shared(),
        )

    def _policy(self) -> dict[str, str]:
        names = ("promotion", "alias", "champion_alias")
        return {"alias": "candidate"} | {name: self.params[name] for name in names if name in self.params}

    def _approve(self) -> Any:
        return OnnxApproveVersionOperator(
            task_id="approve",
            version=self.returned["register"],
            policy=self._policy(),
            rules=self.params.get("rules"),
            timeout_h="72",
            **self._judged(),
            **self._shared(),
        )

    def _promote(self) -> Any:
        return MlflowPromoteModelOperator(
            task_id="promote",
            uploaded=self.returned["upload"],
            version=self.returned["register"],
            given=self.returned.get("approve"),
            policy=self._policy(),
            stage=self.params.get("stage", "none"),
            rules=self.params.get("rules"),
            outlets=[RELEASED_VERSIONS],
            **self._judged(),
            **self._shared(),
        )


def new_release(run_id: str) -> Release:
    name = f"model-{uuid.uuid4().hex[:8]}"
    return Release(run_id, name, dag_run_id=f"manual__{name}")


def objects_of(release: Release) -> list[str]:
    keys = S3Hook("minio_default").list_keys(BUCKET, prefix=f"{release.model_name}/")
    return sorted(keys or [])


def versions_of(hook: MlflowHook, release: Release) -> list[Any]:
    return list(hook.client.search_model_versions(f"name='{release.model_name}'"))


def tags_of(hook: MlflowHook, run_id: str) -> dict[str, str]:
    """Return the release's tags on a training run without their prefix. A missing one reads as empty."""
    tags = hook.client.get_run(run_id).data.tags
    assert all(text for name, text in tags.items() if name.startswith(f"{TAG}."))
    found = {name.removeprefix(f"{TAG}."): text for name, text in tags.items() if name.startswith(f"{TAG}.")}
    return defaultdict(str, found)


def assert_nothing_left(hook: MlflowHook, release: Release) -> None:
    assert objects_of(release) == []
    assert versions_of(hook, release) == []


def assert_refused(hook: MlflowHook, release: Release, *words: str) -> dict[str, Any]:
    """Check that the training run says refused, and why; return the report that lies on it."""
    tags = hook.client.get_run(release.training_run_id).data.tags
    assert tags["onnx_release.status"] == "refused"
    for word in words:
        assert word in tags["onnx_release.reason"]
    assert tags["onnx_release.headline"].startswith("Refused: ")
    text = mlflow.artifacts.load_text(f"runs:/{release.training_run_id}/onnx_release/{release.model_name}/report.json")
    report: dict[str, Any] = json.loads(text)
    assert report["status"] == "refused"
    assert (report["artifact"] or {}).get("staging_uri") is None
    return report
