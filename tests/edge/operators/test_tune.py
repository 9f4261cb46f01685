"""A release of reduced precision on a real MLflow server and a real store, beside the exact one and never for it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from torch import nn

from airflow_onnx import validation
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.tracking.release_inputs import ReleaseInputs
from onnx_release.records import TrainedModel
from onnx_release.training_runs.tags import VERSION_PRECISION
from tests.core.tuning.tuned_models import time_by_size
from tests.edge.conftest import Services
from tests.edge.releasing import TAG, Release, TwoHeads, new_release, tags_of, trained_run, versions_of
from tests.refusals import failed, refused

INT8: dict[str, Any] = {"enabled": "true", "precisions": '["int8"]', "max_s": "60"}


class Wide(TwoHeads):
    """Nearly all bytes of its file are weights, so int8 makes it a quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 512), nn.GELU(), nn.Linear(512, 1024), nn.GELU(), nn.Linear(1024, 16))


@pytest.fixture(autouse=True)
def _times_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    time_by_size(monkeypatch)


@pytest.fixture(scope="module")
def run_id(staging: None) -> str:
    MlflowHook("mlflow_default").activate()
    mlflow.set_experiment("tests")
    torch.manual_seed(0)
    made = trained_run(run_name="wide", module=Wide())
    signal = np.random.default_rng(2).standard_normal((24, 8)).astype(np.float32)
    return _with_evaluation(made, signal)


def _with_evaluation(run_id: str, signal: Any) -> str:
    """Log an evaluation sample to the run, as a training script does."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "evaluation.npz"), **{"signal": signal, "target.positions": signal[:, :2]})
        hook = MlflowHook("mlflow_default")
        hook.client.log_artifact(run_id, str(Path(folder, "evaluation.npz")))
        hook.client.set_tag(run_id, f"{TAG}.evaluation", "evaluation.npz")
    return run_id


def test_int8_by_request_stands_beside_the_exact_release(hook: MlflowHook, services: Services, run_id: str) -> None:
    exact = new_release(run_id)
    assert exact.to("promote")["alias"] == "candidate"
    assert exact.skipped == {"tune", "approve"}, "off by default"
    handed_on = Release(run_id, exact.model_name, returned=dict(exact.returned))
    assert handed_on.run("tune") == exact.returned["export"], "cleared alone, it returns the exported artifact"
    before = tags_of(hook, run_id)

    reduced = Release(run_id, exact.model_name, dag_run_id="int8", params={"tune": INT8})
    version = reduced.to("promote")
    assert (version["version"], version["alias"]) == (2, "candidate-int8")
    tuned = reduced.returned["tune"]
    assert tuned["sha256"] != reduced.returned["export"]["sha256"]
    assert tuned["tuning"]["task_metric"] == {"positions": "MAE"}
    stored = {v.version: v.tags for v in versions_of(hook, exact)}
    assert {number: tags[VERSION_PRECISION] for number, tags in stored.items()} == {"1": "exact", "2": "int8"}
    aliases = hook.client.get_registered_model(exact.model_name).aliases
    assert {alias: str(number) for alias, number in aliases.items()} == {"candidate": "1", "candidate-int8": "2"}

    after = tags_of(hook, run_id)
    attempt = {"attempted_at", "last_attempt", "last_attempt_url", "rerun_url"}
    assert {name: after[name] for name in before if name not in attempt} == {
        name: before[name] for name in before if name not in attempt
    }
    assert (after["version"], after["int8.version"], after["int8.alias"]) == ("1", "2", "candidate-int8")
    assert after["int8.sha256"] == tuned["sha256"]
    report = _report(run_id, f"{exact.model_name}/int8")
    assert report["artifact"]["tuning"]["chosen"] == tuned["variant"]
    assert _report(run_id, exact.model_name)["artifact"]["precision"] == "exact"
    figures = hook.client.get_run(run_id).data.metrics
    assert f"{TAG}/int8/size_bytes" in figures
    assert figures[f"{TAG}/size_bytes"] == exact.returned["export"]["size_bytes"]

    _assert_served(services, reduced)


def _report(run_id: str, below: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{TAG}/{below}/report.json"))
    return found


def _assert_served(services: Services, release: Release) -> None:
    """Load the version as a consumer does: its session has the chosen options, and it returns the tested outputs."""
    served = services.serve(f"models:/{release.model_name}@candidate-int8")
    threads = served.get_raw_model().get_session_options().intra_op_num_threads
    assert threads == release.returned["tune"]["session_options"].get("intra_op_num_threads", 0)
    exact = services.serve(f"models:/{release.model_name}@candidate")
    signal = np.random.default_rng(3).standard_normal((5, 8)).astype(np.float32)
    wanted, got = exact.predict({"signal": signal})["positions"], served.predict({"signal": signal})["positions"]
    error = np.sqrt(np.mean((wanted - got) ** 2) / np.mean(wanted**2))
    assert 0.0 < error < 0.05


def test_a_reduced_model_gets_no_stage_and_nothing_is_uploaded(hook: MlflowHook, run_id: str) -> None:
    release = new_release(run_id)
    release.params |= {"tune": INT8, "stage": "Production"}
    with failed("stage_of_reduced_precision", "Production", "int8"):
        release.to("tune")
    assert versions_of(hook, release) == []


def test_int8_or_nothing_is_refused_when_nothing_passes(hook: MlflowHook, run_id: str) -> None:
    release = new_release(run_id)
    strict = {
        "precision_limits": '{"int8": {"sqnr_min_db": 120}}',
        "max_s": "10",
        "allowed_domains": '["com.microsoft"]',
    }
    release.params["tune"] = INT8 | strict
    with failed("no_reduced_variant", "int8-dynamic: refused", "int8-blockwise: refused"):
        release.to("tune")
    tags = tags_of(hook, run_id)
    assert tags["last_attempt"].startswith("refused")


@pytest.mark.parametrize("tag", ["../../other/evaluation.npz", "/etc/x.npz", "model/MLmodel"])
def test_a_hostile_tag_leads_nowhere(hook: MlflowHook, tag: str) -> None:
    run = hook.client.create_run(mlflow.get_experiment_by_name("tests").experiment_id)
    hook.client.set_tag(run.info.run_id, f"{TAG}.evaluation", tag)
    source = ReleaseInputs(hook, TrainedModel(training_run_id=run.info.run_id, model_uri="models:/m-1"), {})
    with refused("evaluation_tag", tag):
        source.evaluation_uri("")
    assert source.evaluation_uri("s3://bucket/mine.npz") == "s3://bucket/mine.npz", "a parameter wins"


def test_the_alias_of_a_reduced_model_has_a_suffix_and_it_gets_no_stage() -> None:
    assert (validation.alias_for("candidate", "exact"), validation.alias_for("candidate", "int8")) == (
        "candidate",
        "candidate-int8",
    )
    with refused("wrong_name", "alias"):
        validation.alias_for("a" * 62, "int8")
    assert (validation.stage_for("none", "int8"), validation.stage_for("Staging", "exact")) == (None, "Staging")
    with refused("stage_of_reduced_precision", "Staging"):
        validation.stage_for("Staging", "int8")
