"""Releases of the runs of a range of time, and plans of them, on a real MLflow server."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk.exceptions import TaskDeferred

from airflow_onnx.storage import s3
from airflow_onnx.tracking.model_registry import VersionRequest, ensure_version
from airflow_onnx.triggers.release_dag_runs import ReleaseDagRunsTrigger
from tests.edge.releasing import TAG
from tests.edge.watch.watching import Lab, by_run, context


def test_a_backfill_reports_every_run_of_its_interval_and_releases_the_releasable(
    lab: Lab, administrator: None, model_folder: Path
) -> None:
    new, gone, deleted = lab.run(), lab.run(), lab.run()
    failed, released = lab.run(status="KILLED"), lab.run()
    outside = lab.run(ended_h_ago=30)
    uri = lab.hook.client.get_run(gone).info.artifact_uri
    lab.hook.client.set_tag(gone, "mlflow.log-model.history", "[]")
    _remove_artifacts(uri)
    lab.hook.client.delete_run(deleted)
    name = f"m-{uuid.uuid4().hex[:8]}"
    request = VersionRequest(
        name=name, training_run_id=released, sha256="a" * 64, source="s3://heimdall-models/x", description=""
    )
    ensure_version(lab.hook, request)
    with pytest.raises(TaskDeferred) as deferred:
        lab.backfill(params={"model_name": name})
    assert set(lab.supervisor.confs) == {f"release__{new}"}
    report = by_run(_finish(lab, deferred.value, params={"model_name": name}))
    assert report[gone] == ("skip", "the run logged a model, but its files are gone")
    assert report[deleted] == ("skip", "the run was deleted")
    assert report[failed] == ("skip", "the run ended as KILLED")
    assert report[released] == ("skip", f"released as version 1 of '{name}'")
    assert report[new][1].startswith("tried before")
    assert outside not in report


def test_a_backfill_keeps_the_given_number_of_releases_in_progress_in_order(lab: Lab) -> None:
    runs = [lab.run(ended_h_ago=hours) for hours in (4, 3, 2, 1)]
    with pytest.raises(TaskDeferred) as deferred:
        lab.backfill(at_once="2", order="newest")
    assert list(lab.supervisor.confs) == [f"release__{run}" for run in runs[:1:-1]]
    trigger = deferred.value.trigger
    assert isinstance(trigger, ReleaseDagRunsTrigger)
    assert {dag_id: set(ids) for dag_id, ids in trigger.dag_runs.items()} == {"release_onnx": set(lab.supervisor.confs)}
    lab.supervisor.states[f"release__{runs[3]}"] = "success"
    with pytest.raises(TaskDeferred):
        _resume(lab, deferred.value, at_once="2", order="newest")
    assert f"release__{runs[1]}" in lab.supervisor.confs
    assert f"release__{runs[0]}" not in lab.supervisor.confs


def test_a_release_that_waits_for_a_person_does_not_delay_the_others(lab: Lab) -> None:
    runs = [lab.run(ended_h_ago=hours) for hours in (3, 2, 1)]
    new = lab.run()
    waiting = {f"{TAG}.last_attempt": "waiting 2026-11-27T08:00:00Z: for an approval", f"{TAG}.status": "waiting"}
    lab.hook.set_tags(new, {**waiting, f"{TAG}.watched": "new"})
    lab.supervisor.states[f"release__{new}"] = "running"
    with pytest.raises(TaskDeferred) as deferred:
        lab.backfill(at_once="1")
    assert list(lab.supervisor.confs) == [f"release__{runs[0]}"]
    lab.hook.set_tags(runs[0], waiting)
    with pytest.raises(TaskDeferred):
        _resume(lab, deferred.value, at_once="1")
    assert list(lab.supervisor.confs) == [f"release__{run}" for run in runs[:2]]


def test_a_repeated_or_crashed_backfill_continues(lab: Lab) -> None:
    runs = [lab.run(ended_h_ago=hours) for hours in (2, 1)]
    with pytest.raises(TaskDeferred):
        lab.backfill(at_once="1")
    with pytest.raises(TaskDeferred) as again:
        lab.backfill(at_once="1")
    assert list(lab.supervisor.confs) == [f"release__{runs[0]}"]
    lab.supervisor.states[f"release__{runs[0]}"] = "failed"
    report = _finish(lab, again.value, at_once="1")
    assert set(lab.supervisor.confs) == {f"release__{run}" for run in runs}
    assert report["totals"] == {"runs": 2, "skip": 2}
    before = dict(lab.supervisor.confs)
    assert lab.backfill()["totals"]["skip"] == 2
    assert lab.supervisor.confs == before, "a second backfill of the range starts nothing"


def test_a_run_that_is_deleted_before_its_turn_is_skipped(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    first, deleted_run, last = (lab.run(ended_h_ago=hours) for hours in (3, 2, 1))
    with pytest.raises(TaskDeferred) as deferred:
        lab.backfill(at_once="1")
    assert deferred.value.kwargs
    deferred.value.kwargs["backlog"]["pending"] = ["0" * 32, deleted_run, last]
    lab.hook.client.delete_run(deleted_run)
    lab.supervisor.states[f"release__{first}"] = "success"
    with pytest.raises(TaskDeferred):
        _resume(lab, deferred.value, at_once="1")
    assert set(lab.supervisor.confs) == {f"release__{first}", f"release__{last}"}


def test_old_runs_wait_while_the_release_of_a_new_run_is_in_progress(lab: Lab) -> None:
    old = [lab.run(ended_h_ago=hours) for hours in (60, 50)]
    with pytest.raises(TaskDeferred) as deferred:
        lab.backfill(hours=100, at_once="1")
    new = lab.run()
    lab.start("asset_triggered")
    lab.supervisor.states[f"release__{old[0]}"] = "success"
    with pytest.raises(TaskDeferred) as delayed:
        _resume(lab, deferred.value, at_once="1")
    assert f"release__{old[1]}" not in lab.supervisor.confs
    assert delayed.value.trigger.wait_max_s < 60
    lab.supervisor.states[f"release__{new}"] = "success"
    with pytest.raises(TaskDeferred):
        _resume(lab, delayed.value, at_once="1")
    assert f"release__{old[1]}" in lab.supervisor.confs


def test_a_plan_starts_nothing_and_sets_no_tag(lab: Lab) -> None:
    run = lab.run(ended_h_ago=48)
    since = (datetime.now(UTC) - timedelta(hours=72)).isoformat()
    report = lab.start("manual", since=since, plan_only="true")
    assert by_run(report)[run][0] == "release"
    assert report["totals"] == {"runs": 1, "release": 1}
    assert report["estimate"]["total_wall_s"] == pytest.approx(60.0), "one release takes its own duration"
    assert "assumed" in report["estimate"]["basis"]
    assert lab.supervisor.confs == {}
    assert not [tag for tag in lab.tags(run) if tag.startswith(TAG)]


def test_an_estimate_uses_the_latest_releases(lab: Lab) -> None:
    for seconds in ("10.0", "20.0", "90.0", "hostile"):
        run = lab.run(ended_h_ago=400)
        lab.hook.client.set_tag(run, f"{TAG}.status", "released")
        lab.hook.client.set_tag(run, f"{TAG}.wall_s", seconds)
    for _ in range(3):
        lab.run()
    estimate = lab.start("manual", plan_only="true", at_once="1")["estimate"]
    assert estimate["total_wall_s"] == pytest.approx(60.0)
    assert estimate["basis"] == "the median of 3 releases in these experiments"


def test_a_refusal_by_the_watch_has_a_report_and_is_decided_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lab.run(model=False)
    for text, path in (("x", "model/data/model.pth"), ("flavors: {pytorch: {}}", "model/MLmodel")):
        lab.hook.client.log_text(run, text, path)
    lab.start()
    tags = lab.tags(run)
    assert tags[f"{TAG}.status"] == "refused"
    for part in ("serialization_format='pt2'", "allow_pickle = True", "TorchScript"):
        assert part in tags[f"{TAG}.reason"]
    assert tags[f"{TAG}.last_attempt"].startswith("refused 20")
    assert tags[f"{TAG}.last_attempt_url"] == "http://airflow.test/dags/watch_training/runs/watch"
    assert run in tags[f"{TAG}.rerun_url"]
    assert f"{TAG}.dag_run_id" not in tags, "no release has begun"
    folder = next(item.path for item in lab.hook.client.list_artifacts(run, TAG))
    names = {item.path.rpartition("/")[2] for item in lab.hook.client.list_artifacts(run, folder)}
    assert names == {"history", "report.json", "report.html", "summary.md"}

    assert by_run(lab.start()) == {}, "the watch decides once"
    again = lab.backfill()
    assert by_run(again)[run][0] == "refuse"
    assert len(lab.hook.client.list_artifacts(run, f"{folder}/history")) == 2, "the same refusal is not logged twice"
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE", "True")
    with pytest.raises(TaskDeferred):
        lab.backfill()
    assert set(lab.supervisor.confs) == {f"release__{run}"}
    assert (lab.tags(run)[f"{TAG}.status"], lab.tags(run).get(f"{TAG}.reason")) == ("triggered", None)


def test_a_refusal_by_a_release_is_not_repeated(lab: Lab) -> None:
    run = lab.run()
    reason = "the outputs differ by a lot. " + "word " * 100
    for name, text in (("status", "refused"), ("reason", reason), ("dag_run_id", "manual__1")):
        lab.hook.client.set_tag(run, f"{TAG}.{name}", text)
    action, text = by_run(lab.backfill(plan_only="true"))[run]
    assert (action, text.count("refused")) == ("skip", 1)
    assert "Trigger release_onnx manually. The earlier reason: the outputs" in text
    assert text.endswith("word…")


def _resume(lab: Lab, deferred: TaskDeferred, **arguments: Any) -> Any:
    assert deferred.kwargs
    return lab.operator(**arguments).execute_complete(context("backfill"), {}, **deferred.kwargs)


def _finish(lab: Lab, deferred: TaskDeferred, **arguments: Any) -> Any:
    """Let every release fail until the backfill ends."""
    for _ in range(20):
        for run_id in lab.supervisor.states:
            lab.supervisor.states[run_id] = "failed"
        try:
            return _resume(lab, deferred, **arguments)
        except TaskDeferred as again:
            deferred = again
    raise AssertionError("the backfill does not end")


def _remove_artifacts(uri: str) -> None:
    """Delete a run's objects in the store, as a wrong lifecycle rule does."""
    prefix = uri.removeprefix("mlflow-artifacts:/") + "/"
    folder = s3.S3Folder(hook=S3Hook("minio_default"), bucket="mlflow", prefix=prefix)
    paths = sorted(s3.sizes(folder))
    assert "model/MLmodel" in paths
    s3.remove(folder, paths)
