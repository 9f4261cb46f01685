"""The state of a release on its training run, and the history of every attempt."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk.exceptions import AirflowFailException

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.sensors.mlflow_run import MlflowTrainingRunSensor
from airflow_onnx.tracking import model_registry, run_description
from tests.edge.door import Door
from tests.edge.releasing import TAG, Release, new_release, objects_of, tags_of, trained_run, versions_of
from tests.edge.test_airflow_urls import rerun_conf
from tests.refusals import failed


@pytest.fixture(autouse=True)
def airflow_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://airflow.test")


def history(hook: MlflowHook, release: Release) -> list[str]:
    folder = f"{TAG}/{release.model_name}/history"
    found = hook.client.list_artifacts(release.training_run_id, folder)
    names = [item.path.rpartition("/")[2] for item in found]
    reports = [name for name in names if name.endswith(".json")]
    assert names == sorted([*reports, *(name.replace(".json", ".html") for name in reports)]), "each with its page"
    return reports


def refuse(release: Release, judged: Release) -> None:
    """Let the parity comparison fail, as a person does who tries stricter limits."""
    release.params["parity"] = {"max_abs": 1e-30}
    release.after(judged, "check")
    with pytest.raises(AirflowFailException):
        release.run("parity_latency")


def test_a_refusal_after_a_release_does_not_change_the_current_release(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    before = tags_of(hook, release.training_run_id)
    report_uri = f"runs:/{release.training_run_id}/{TAG}/{release.model_name}/report.json"
    report = mlflow.artifacts.load_text(report_uri)
    assert (before["status"], before["version"], before["alias"]) == ("released", "1", "candidate")

    again = Release(release.training_run_id, release.model_name, dag_run_id="stricter")
    refuse(again, judged)
    after = tags_of(hook, release.training_run_id)
    assert after["last_attempt"].startswith("refused ")
    assert "1e-30" in after["last_attempt"]
    assert after["last_attempt_url"] == "http://airflow.test/dags/release_onnx/runs/stricter"
    attempt = {"attempted_at", "last_attempt", "last_attempt_url", "rerun_url"}
    assert {name: after[name] for name in before if name not in attempt} == {
        name: before[name] for name in before if name not in attempt
    }
    assert mlflow.artifacts.load_text(report_uri) == report
    assert [name.split("-")[1] for name in history(hook, release)] == ["accepted", "refused"]
    assert len(versions_of(hook, release)) == 1


def test_a_release_after_a_refusal_becomes_current(hook: MlflowHook, release: Release, judged: Release) -> None:
    first = Release(release.training_run_id, release.model_name, dag_run_id="first")
    hook.client.set_tag(release.training_run_id, run_description.TAG, "A person's *note*.")
    refuse(first, judged)
    tags = tags_of(hook, release.training_run_id)
    note = hook.client.get_run(release.training_run_id).data.tags[run_description.TAG]
    assert note.startswith("A person's *note*.\n\n<!-- onnx-release:start -->\n\n**Refused: ")
    assert f"[Release again]({tags['rerun_url']})" in note
    assert f"/artifacts/{TAG}/{release.model_name}/report.html)" in note
    assert (tags["status"], tags["dag_run_id"]) == ("refused", "first")
    assert tags["reason_code"]
    release.durations = [
        {"task_id": "export", "operator": "OnnxExportOperator", "duration": 10.5},
        {"task_id": "wait_for_training", "operator": "MlflowTrainingRunSensor", "duration": 3600.0},
        {"task_id": "tune", "operator": "x", "duration": None},
    ]
    release.begins = {
        "wait_for_training": {"began": "2026-01-01T00:00:00+00:00", "waited_s": 0.0},
        "export": {"began": "2026-01-01T01:00:05+00:00", "waited_s": 2.0},
    }
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    tags = tags_of(hook, release.training_run_id)
    assert (tags["status"], tags["reason"], tags["reason_code"]) == ("released", "", "")
    assert tags["dag_run_id"] == release.dag_run_id
    assert 8.5 <= float(tags["wall_s"]) < 600, "the work of the tasks, without the waits for training and host"
    uri = f"runs:/{release.training_run_id}/{TAG}/{release.model_name}/report.json"
    steps = {step.pop("task"): step for step in mlflow.artifacts.load_dict(uri)["steps"]}
    assert steps["wait_for_training"] == {"wall_s": 3600.0, "waited_s": 3600.0}
    assert steps["export"] == {"wall_s": 15.5, "waited_s": 7.0}
    assert steps["promote"]["wall_s"] > 0, "the last task until its report"
    kept = history(hook, release)
    assert len(kept) == 2
    path = f"runs:/{release.training_run_id}/{TAG}/{release.model_name}/history/{kept[0]}"
    assert json.loads(mlflow.artifacts.load_text(path))["status"] == "refused"


def test_a_release_that_fails_before_its_alias_is_moved_is_not_current(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency").run("upload", "register")
    S3Hook("minio_default").get_conn().delete_object(Bucket="heimdall-models", Key=objects_of(release)[0])
    with failed("objects_changed"):
        release.run("promote")
    tags = tags_of(hook, release.training_run_id)
    assert (tags["status"], "version" in tags, len(versions_of(hook, release))) == ("refused", False, 1)


def test_a_refusal_after_the_version_was_deleted_empties_its_tags(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    hook.client.delete_model_version(release.model_name, "1")
    refuse(Release(release.training_run_id, release.model_name, dag_run_id="later"), judged)
    tags = tags_of(hook, release.training_run_id)
    assert (tags["status"], tags["dag_run_id"]) == ("refused", "later")
    assert [tags[name] for name in ("version", "alias", "s3_uri", "wall_s")] == ["", "", "", ""]


def test_a_refusal_under_another_name_does_not_change_the_current_release(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    other = new_release(release.training_run_id)
    refuse(other, judged)
    uri = f"runs:/{other.training_run_id}/{TAG}/{other.model_name}/report.json"
    assert json.loads(mlflow.artifacts.load_text(uri))["status"] == "refused"
    tags = tags_of(hook, release.training_run_id)
    assert (tags["status"], tags["registered_model"], tags["version"]) == ("released", release.model_name, "1")
    assert tags["last_attempt"].startswith("refused ")


@pytest.mark.parametrize("name", ["no-such-model", "' or name='x", "../x", "a/b"])
def test_a_release_without_a_registered_version_is_not_current(hook: MlflowHook, run_id: str, name: str) -> None:
    assert not model_registry.is_release_of(hook, name, "1", run_id)
    assert not model_registry.is_release_of(hook, name, "one", run_id)


def test_more_metrics_than_fit_into_one_call_are_all_logged(hook: MlflowHook) -> None:
    run_id = hook.client.create_run("0").info.run_id
    metrics = {f"onnx_release/number_{number}": float(number) for number in range(1001)}
    hook.log_metrics(run_id, metrics)
    assert hook.client.get_run(run_id).data.metrics == metrics


def test_the_start_of_a_release_is_tagged_on_the_run(hook: MlflowHook) -> None:
    run_id = trained_run(seed=41)
    release = Release(run_id, "begun", dag_run_id="by hand/1", conf={"mae_max": 1e-4, "training_run_id": run_id})
    release.run("wait")
    tags = tags_of(hook, run_id)
    assert (tags["status"], tags["dag_run_id"]) == ("running", "by hand/1")
    assert tags["dag_run_url"] == "http://airflow.test/dags/release_onnx/runs/by%20hand%2F1"
    assert rerun_conf(tags["rerun_url"]) == {"mae_max": 1e-4, "training_run_id": run_id}


@pytest.mark.parametrize("form", ["runs:/{run}/model", "models:/{model}"])
def test_a_release_by_model_uri_is_repeated_by_model_uri(hook: MlflowHook, run_id: str, form: str) -> None:
    model_id = hook.client.get_run(run_id).outputs.model_outputs[0].model_id
    uri = form.format(run=run_id, model=model_id)
    run = SimpleNamespace(dag_id="release_onnx", run_id="uri", conf={"model_uri": uri})
    context = Release(run_id, "by-uri").context | {"dag_run": run}
    trained = MlflowTrainingRunSensor(task_id="wait", model_uri=uri, model_name="by-uri", log_to_run=True).execute(
        context
    )
    assert (trained["training_run_id"], trained["model_uri"]) == (run_id, uri)
    assert rerun_conf(tags_of(hook, run_id)["rerun_url"]) == {"model_uri": uri}


def test_a_sensor_that_pokes_tags_the_start_once(hook: MlflowHook) -> None:
    run = hook.client.create_run(hook.client.create_experiment("poked"))
    context: Any = {"dag_run": SimpleNamespace(dag_id="release_onnx", run_id="poke", conf={})}
    sensor = MlflowTrainingRunSensor(
        task_id="wait", training_run_id=run.info.run_id, model_name="poked", deferrable=False, log_to_run=True
    )
    assert not sensor.poke(context).is_done
    assert tags_of(hook, run.info.run_id)["status"] == "running"
    hook.client.delete_tag(run.info.run_id, f"{TAG}.status")
    assert not sensor.poke(context).is_done
    assert "status" not in tags_of(hook, run.info.run_id)


def test_a_release_whose_task_was_killed_ends_as_failed_and_a_repetition_is_released(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.conf = {"mae_max": 1e-4, "training_run_id": release.training_run_id}
    release.run("wait")
    assert tags_of(hook, release.training_run_id)["status"] == "running"
    release.states["export"] = "failed"
    release.clean()
    tags = tags_of(hook, release.training_run_id)
    assert (tags["status"], tags["reason_code"], tags["dag_run_id"]) == ("failed", "", release.dag_run_id)
    assert "'export' failed without a message" in tags["reason"]
    assert tags["last_attempt"].startswith("failed ")
    assert tags["last_attempt_url"].endswith(release.dag_run_id)
    assert rerun_conf(tags["rerun_url"]) == release.conf

    release.after(judged, "parity_latency").run("upload", "register", "promote")
    release.clean()
    tags = tags_of(hook, release.training_run_id)
    assert (tags["status"], tags["reason"], tags["version"]) == ("released", "", "1")
    assert tags["last_attempt"].startswith("released ")


def test_a_failure_after_a_release_does_not_change_the_current_release(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    other = new_release(release.training_run_id)
    other.run("wait")
    other.states["upload"] = "failed"
    other.clean()
    tags = tags_of(hook, release.training_run_id)
    assert (tags["status"], tags["version"], tags["reason"]) == ("released", "1", "")
    assert "'upload'" in tags["last_attempt"]


def test_a_recorded_refusal_is_not_replaced_by_a_failure(hook: MlflowHook, release: Release, judged: Release) -> None:
    refuse(release, judged)
    before = tags_of(hook, release.training_run_id)
    release.clean()
    assert tags_of(hook, release.training_run_id) == before


def test_a_refusal_during_an_outage_of_mlflow_is_recorded_by_the_teardown(
    hook: MlflowHook, release: Release, judged: Release, administrator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.run("wait")
    release.after(judged, "parity_latency")
    release.params["bucket"] = "no-such-bucket"
    with monkeypatch.context() as patch, failed("no_bucket"):
        closed = Door(hook.server.tracking_uri)
        patch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": closed.url}))
        release.run("upload")
    assert tags_of(hook, release.training_run_id)["status"] == "running"
    release.clean()
    tags = tags_of(hook, release.training_run_id)
    assert (tags["status"], tags["reason_code"]) == ("refused", "no_bucket")
    assert "no-such-bucket" in tags["reason"]
