"""What a release leaves on its training run: one state that is true, and the history of every attempt."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import mlflow
import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_onnx import evidence
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.sensors.training import TrainingCompleteSensor

from .releasing import Release, trained_run, versions_of

TAG = "onnx_release"


@pytest.fixture(autouse=True)
def airflow_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://airflow.test")


def tags_of(hook: MlflowHook, run_id: str) -> dict[str, str]:
    tags = hook.client.get_run(run_id).data.tags
    return {name.removeprefix(f"{TAG}."): text for name, text in tags.items() if name.startswith(f"{TAG}.")}


def history(hook: MlflowHook, release: Release) -> list[str]:
    folder = f"{TAG}/{release.model_name}/history"
    found = hook.client.list_artifacts(release.training_run_id, folder)
    return [item.path.rpartition("/")[2] for item in found]


def refuse(release: Release, judged: Release) -> None:
    """Ask for the impossible, as a person does who tries stricter limits."""
    release.params["parity"] = {"mae_max": 1e-30}
    release.after(judged, "check")
    with pytest.raises(AirflowFailException):
        release.run("parity_latency")


@pytest.fixture
def fresh(hook: MlflowHook, judged: Release, release: Release) -> Release:
    """A release of the judged run under a name of its own, as if nobody had tried it before."""
    for name in tags_of(hook, release.training_run_id):
        hook.client.delete_tag(release.training_run_id, f"{TAG}.{name}")
    return release


def test_a_refusal_after_a_success_leaves_the_success_standing(
    hook: MlflowHook, fresh: Release, judged: Release
) -> None:
    fresh.after(judged, "parity_latency").run("upload", "register", "promote")
    before = tags_of(hook, fresh.training_run_id)
    report_uri = f"runs:/{fresh.training_run_id}/{TAG}/{fresh.model_name}/report.json"
    report = mlflow.artifacts.load_text(report_uri)
    assert (before["status"], before["version"], before["alias"]) == ("released", "1", "candidate")

    again = Release(fresh.training_run_id, fresh.model_name, dag_run_id="stricter")
    refuse(again, judged)
    after = tags_of(hook, fresh.training_run_id)
    assert after["last_attempt"].startswith("refused ")
    assert "1e-30" in after["last_attempt"]
    assert after["last_attempt_url"] == "http://airflow.test/dags/release_onnx/runs/stricter"
    attempt = {"last_attempt", "last_attempt_url", "rerun_url"}
    assert {name: after[name] for name in before if name not in attempt} == {
        name: before[name] for name in before if name not in attempt
    }
    assert mlflow.artifacts.load_text(report_uri) == report
    assert [name.split("-")[1] for name in history(hook, fresh)] == ["accepted", "refused"]
    assert len(versions_of(hook, fresh)) == 1


def test_a_release_after_a_refusal_is_a_release(hook: MlflowHook, fresh: Release, judged: Release) -> None:
    first = Release(fresh.training_run_id, fresh.model_name, dag_run_id="first")
    refuse(first, judged)
    tags = tags_of(hook, fresh.training_run_id)
    assert (tags["status"], tags["dag_run_id"]) == ("refused", "first")
    fresh.after(judged, "parity_latency").run("upload", "register", "promote")
    tags = tags_of(hook, fresh.training_run_id)
    assert (tags["status"], tags["reason"], tags["dag_run_id"]) == ("released", "", fresh.dag_run_id)
    assert float(tags["wall_s"]) >= 0
    kept = history(hook, fresh)
    assert len(kept) == 2
    path = f"runs:/{fresh.training_run_id}/{TAG}/{fresh.model_name}/history/{kept[0]}"
    assert json.loads(mlflow.artifacts.load_text(path))["status"] == "refused"


def test_a_release_says_on_the_run_that_it_has_begun(hook: MlflowHook) -> None:
    run_id = trained_run(seed=41)
    release = Release(run_id, "begun", dag_run_id="by hand/1", conf={"mae_max": 1e-4, "training_run_id": run_id})
    release.run("wait")
    tags = tags_of(hook, run_id)
    assert (tags["status"], tags["dag_run_id"]) == ("running", "by hand/1")
    assert tags["dag_run_url"] == "http://airflow.test/dags/release_onnx/runs/by%20hand%2F1"
    assert asked(tags["rerun_url"]) == {"mae_max": 1e-4, "training_run_id": run_id}


@pytest.mark.parametrize("form", ["runs:/{run}/model", "models:/{model}"])
def test_a_release_by_model_uri_is_repeated_by_it(hook: MlflowHook, run_id: str, form: str) -> None:
    model_id = hook.client.get_run(run_id).outputs.model_outputs[0].model_id
    uri = form.format(run=run_id, model=model_id)
    context: Any = {"dag_run": SimpleNamespace(dag_id="release_onnx", run_id="uri", conf={"model_uri": uri})}
    trained = TrainingCompleteSensor(task_id="wait", model_uri=uri, model_name="by-uri").execute(context)
    assert (trained["training_run_id"], trained["model_uri"]) == (run_id, uri)
    assert asked(tags_of(hook, run_id)["rerun_url"]) == {"model_uri": uri}


def asked(url: str) -> Any:
    """Return what the trigger page reads from its address."""
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.path) == ("http", "airflow.test", "/onnx-release/trigger")
    return json.loads(parse_qs(parts.query, strict_parsing=True)["conf"][0])


def test_a_rerun_address_carries_hostile_text_as_data_and_fits_a_tag() -> None:
    hostile = {"model_name": '"><script>&conf=%7B', "alias": "ü\n#?"}
    assert asked(evidence.rerun_url("r" * 32, hostile)) == {**hostile, "training_run_id": "r" * 32}
    long = evidence.rerun_url("r" * 32, {"per_output": {"x": "y" * 5000}})
    assert len(long) <= evidence.TAG_MAX_CHARACTERS
    assert asked(long) == {"training_run_id": "r" * 32}
