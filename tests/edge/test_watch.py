"""Which training runs are released, by the bell, the schedule, a backfill and a person: on a real MLflow server."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from airflow.sdk.execution_time import task_runner

from airflow_onnx import objects
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.operators.watch import WatchTrainingOperator
from airflow_onnx.registry import PRECISION_TAG, VersionRequest, ensure_version
from airflow_onnx.triggers.releases import ReleasesTrigger

from .airflow_stand_in import Supervisor, api_error

HOUR_MS = 3_600_000
TAG = "onnx_release"


@dataclass
class Lab:
    """An experiment of its own with runs whose end can be set, and the Airflow that watches it."""

    hook: MlflowHook
    supervisor: Supervisor
    experiment_id: str
    model_folder: Path

    def run(self, *, ended_h_ago: float = 0.1, status: str = "FINISHED", model: bool = True, name: str = "r") -> str:
        """Make a run that has ended, with the model's files among its artifacts as MLflow 2 laid them."""
        run_id = str(self.hook.client.create_run(self.experiment_id, run_name=name).info.run_id)
        if model:
            self.hook.client.log_artifacts(run_id, str(self.model_folder), "model")
        self.hook.client.set_terminated(run_id, status, int(time.time() * 1000 - ended_h_ago * HOUR_MS))
        return run_id

    def tags(self, run_id: str) -> dict[str, str]:
        return dict(self.hook.client.get_run(run_id).data.tags)

    def operator(self, **arguments: Any) -> WatchTrainingOperator:
        return WatchTrainingOperator(
            task_id="start_releases", experiments=json.dumps([self.experiment_id]), **arguments
        )

    def look(self, run_type: str = "scheduled", **arguments: Any) -> Any:
        return self.operator(**arguments).execute(context(run_type))

    def backfill(self, hours: float = 24, **arguments: Any) -> Any:
        return self.operator(**arguments).execute(context("backfill", hours))


def context(run_type: str, hours: float = 24) -> Any:
    now = datetime.now(UTC)
    run = SimpleNamespace(
        run_type=run_type, run_id="watch", data_interval_start=now - timedelta(hours=hours), data_interval_end=now
    )
    return {"dag_run": run}


def by_run(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {row["training_run_id"]: (row["action"], row["reason"]) for row in report["runs"]}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a small pt2 model, as MLflow writes them."""
    folder = tmp_path_factory.mktemp("model") / "model"
    mlflow.pytorch.save_model(torch.nn.Linear(3, 2), folder, serialization_format="pickle", pip_requirements=["torch"])
    (folder / "data" / "model.pth").rename(folder / "data" / "model.pt2")
    return folder


@pytest.fixture
def lab(hook: MlflowHook, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    supervisor = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://airflow.test")
    return Lab(hook, supervisor, hook.client.create_experiment(f"watch-{uuid.uuid4().hex[:8]}"), model_folder)


def test_each_finished_run_is_started_once_whoever_looks(lab: Lab) -> None:
    runs = [lab.run() for _ in range(3)]
    lab.look("asset_triggered")
    lab.look("scheduled")
    lab.look("manual")
    assert set(lab.supervisor.confs) == {f"release__{run}" for run in runs}
    assert lab.supervisor.confs[f"release__{runs[0]}"]["training_run_id"] == runs[0]


def test_twenty_runs_that_end_in_the_same_moment_are_all_started_by_one_look(lab: Lab) -> None:
    runs = [lab.run(ended_h_ago=10) for _ in range(20)]
    moment = int(time.time() * 1000)
    for run in runs:
        lab.hook.client.set_terminated(run, end_time=moment)
    report = lab.look("asset_triggered")
    assert set(lab.supervisor.confs) == {f"release__{run}" for run in runs}
    assert report["totals"] == {"runs": 20, "release": 20}


def test_a_started_run_says_where_its_release_is_and_how_to_repeat_it(lab: Lab) -> None:
    run = lab.run()
    lab.look()
    tags = lab.tags(run)
    assert tags[f"{TAG}.status"] == "triggered"
    assert tags[f"{TAG}.dag_run_url"] == f"http://airflow.test/dags/release_onnx/runs/release__{run}"
    assert tags[f"{TAG}.rerun_url"].startswith("http://airflow.test/")
    assert run in tags[f"{TAG}.rerun_url"]


def test_a_look_that_died_before_its_mark_is_repeated_without_a_second_release(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lab.run()
    with monkeypatch.context() as patch:
        patch.setattr("airflow_onnx.watch.starter.Starter._mark", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            lab.look()
    assert f"{TAG}.watched" not in lab.tags(run)
    assert by_run(lab.look())[run][0] == "wait", "its release goes on"
    assert len(lab.supervisor.confs) == 1


def test_weights_alone_are_started_where_the_run_says_what_makes_its_model(lab: Lab) -> None:
    bare, described, two = (lab.run(model=False) for _ in range(3))
    for run, path in ((bare, "checkpoints/best.ckpt"), (described, "w/a.pth"), (two, "w/a.ckpt"), (two, "w/b.ckpt")):
        lab.hook.client.log_text(run, "weights", path)
    lab.hook.client.set_tag(described, f"{TAG}.factory", "our.nets:make")
    report = by_run(lab.look())
    assert report[described][0] == "release"
    assert report[bare] == (
        "refuse",
        f"the run left weights alone, and nothing says what makes the model (tag {TAG}.factory)",
    )
    assert report[two][0] == "refuse"
    assert "2 files that could be it: w/a.ckpt, w/b.ckpt" in report[two][1]


def test_only_what_can_be_released_is_started_and_the_rest_is_decided_for_good(lab: Lab) -> None:
    without, failed = lab.run(model=False), lab.run(status="FAILED")
    late = lab.run(ended_h_ago=23)
    too_old = lab.run(ended_h_ago=25)
    report = by_run(lab.look())
    assert report[without] == ("skip", "the run holds no PyTorch model")
    assert report[late][0] == "release"
    assert failed not in report
    assert too_old not in report
    assert "no PyTorch model" in lab.tags(without)[f"{TAG}.watched"]
    assert by_run(lab.look()) == {}, "nothing is left to decide"


def test_the_clock_of_a_training_may_be_ahead(lab: Lab) -> None:
    run = lab.run(ended_h_ago=-5)
    assert by_run(lab.look())[run][0] == "release"


def test_a_pickle_is_refused_where_the_deployment_allows_none(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = lab.hook.client.create_run(lab.experiment_id).info.run_id
    lab.hook.client.log_artifacts(pickled, str(lab.model_folder), "model")
    lab.hook.client.log_text(pickled, "x", "other/data/model.pth")
    lab.hook.client.log_text(pickled, "flavors: {}", "other/MLmodel")
    only_pickle = lab.hook.client.create_run(lab.experiment_id).info.run_id
    lab.hook.client.log_text(only_pickle, "x", "model/data/model.pth")
    lab.hook.client.log_text(only_pickle, "flavors: {}", "model/MLmodel")
    for run in (pickled, only_pickle):
        lab.hook.client.set_terminated(run)
    report = by_run(lab.look())
    assert report[pickled][0] == "release"
    assert report[only_pickle][0] == "refuse"
    assert "allow_pickle" in lab.tags(only_pickle)[f"{TAG}.reason"]
    assert lab.tags(only_pickle)[f"{TAG}.status"] == "refused"
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE", "True")
    assert by_run(lab.backfill(plan_only="true"))[only_pickle][0] != "refuse"


def test_a_run_that_somebody_releases_by_hand_is_left_to_him_and_taken_up_if_that_fails(lab: Lab) -> None:
    run = lab.run()
    lab.hook.client.set_tag(run, f"{TAG}.status", "running")
    lab.hook.client.set_tag(run, f"{TAG}.dag_run_id", "by-hand")
    lab.supervisor.states["by-hand"] = "running"
    assert by_run(lab.look())[run] == ("wait", "its release goes on as DAG run by-hand")
    lab.supervisor.states["by-hand"] = "failed"
    assert by_run(lab.look())[run][0] == "release"


@pytest.mark.parametrize("where", ["run", "experiment"])
def test_a_run_or_its_experiment_names_the_registered_model(lab: Lab, where: str) -> None:
    run = lab.run()
    if where == "run":
        lab.hook.client.set_tag(run, f"{TAG}.model_name", "beacons-onnx")
    else:
        lab.hook.client.set_experiment_tag(lab.experiment_id, f"{TAG}.model_name", "beacons-onnx")
    lab.look(release_params='{"alias": "nightly"}', model_name="other")
    conf = lab.supervisor.confs[f"release__{run}"]
    assert conf == {"training_run_id": run, "model_name": "beacons-onnx", "alias": "nightly"}


def test_a_hostile_model_name_is_refused_and_holds_up_no_other_run(lab: Lab) -> None:
    hostile, good = lab.run(ended_h_ago=0.3), lab.run()
    lab.hook.client.set_tag(hostile, f"{TAG}.model_name", "x' or name != '../../")
    report = by_run(lab.look())
    assert report[hostile][0] == "refuse"
    assert "model name" in report[hostile][1]
    assert set(lab.supervisor.confs) == {f"release__{good}"}


def test_parameters_that_airflow_refuses_are_put_on_the_run_and_hold_up_no_other(lab: Lab) -> None:
    first, second = lab.run(ended_h_ago=0.3), lab.run()
    lab.supervisor.fails_with = api_error(400, "Invalid input for param opset: 99 is greater than the maximum")
    lab.look(release_params='{"opset": 99}')
    assert "opset" in lab.tags(first)[f"{TAG}.reason"]
    assert set(lab.supervisor.confs) == {f"release__{second}"}


def test_an_airflow_that_does_not_answer_is_tried_again(lab: Lab) -> None:
    run = lab.run()
    lab.supervisor.fails_with = api_error(503, "no database")
    with pytest.raises(AirflowException) as raised:
        lab.look()
    assert not isinstance(raised.value, AirflowFailException)
    lab.look()
    assert list(lab.supervisor.confs) == [f"release__{run}"]


def test_a_filter_narrows_and_a_broken_one_is_explained(lab: Lab) -> None:
    chosen, _ = lab.run(name="chosen"), lab.run(name="other")
    assert list(by_run(lab.look(run_filter="attributes.run_name = 'chosen'"))) == [chosen]
    with pytest.raises(AirflowFailException, match="Invalid clause"):
        lab.look(run_filter="this is no filter")


def test_a_version_of_reduced_precision_is_not_the_release_that_is_still_to_come(lab: Lab) -> None:
    name, wanted, asked = f"m-{uuid.uuid4().hex[:8]}", lab.run(), lab.run()
    for run_id in (wanted, asked):
        request = VersionRequest(
            name=name,
            training_run_id=run_id,
            sha256="a" * 64,
            source="s3://heimdall-models/x",
            description="",
            tags={PRECISION_TAG: "int8"},
        )
        ensure_version(lab.hook, request)
    only = f"attributes.run_id = '{asked}'"
    told = lab.look(model_name=name, run_filter=only, release_params='{"tune": true, "tune_precisions": ["int8"]}')
    assert by_run(told)[asked] == ("skip", f"released as version 2 of '{name}'")
    assert by_run(lab.look(model_name=name))[wanted][0] == "release"
    assert set(lab.supervisor.confs) == {f"release__{wanted}"}


def test_a_backfill_names_every_run_of_its_interval_and_releases_what_it_can(lab: Lab, model_folder: Path) -> None:
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
        lab.backfill(model_name=name)
    assert set(lab.supervisor.confs) == {f"release__{new}"}
    report = by_run(_finish(lab, deferred.value, model_name=name))
    assert report[gone] == ("skip", "the model was logged, but its artifacts are gone")
    assert report[deleted] == ("skip", "the run was deleted")
    assert report[failed] == ("skip", "the run ended as KILLED")
    assert report[released] == ("skip", f"released as version 1 of '{name}'")
    assert report[new][1].startswith("tried before")
    assert outside not in report


def test_a_backfill_keeps_so_many_releases_going_in_the_order_asked_for(lab: Lab) -> None:
    runs = [lab.run(ended_h_ago=hours) for hours in (4, 3, 2, 1)]
    with pytest.raises(TaskDeferred) as deferred:
        lab.backfill(at_once="2", order="newest")
    assert list(lab.supervisor.confs) == [f"release__{run}" for run in runs[:1:-1]]
    trigger = deferred.value.trigger
    assert isinstance(trigger, ReleasesTrigger)
    assert set(trigger.dag_run_ids) == set(lab.supervisor.confs)
    lab.supervisor.states[f"release__{runs[3]}"] = "success"
    with pytest.raises(TaskDeferred):
        _resume(lab, deferred.value, at_once="2", order="newest")
    assert f"release__{runs[1]}" in lab.supervisor.confs
    assert f"release__{runs[0]}" not in lab.supervisor.confs


def test_a_backfill_that_is_repeated_or_died_goes_on_where_it_was(lab: Lab) -> None:
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
    assert lab.supervisor.confs == before, "a second backfill of the range makes nothing new"


def test_a_run_that_vanishes_before_its_turn_holds_up_no_other(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    first, vanishing, last = (lab.run(ended_h_ago=hours) for hours in (3, 2, 1))
    with pytest.raises(TaskDeferred) as deferred:
        lab.backfill(at_once="1")
    assert deferred.value.kwargs
    deferred.value.kwargs["backlog"]["pending"] = ["0" * 32, vanishing, last]
    lab.hook.client.delete_run(vanishing)
    lab.supervisor.states[f"release__{first}"] = "success"
    with pytest.raises(TaskDeferred):
        _resume(lab, deferred.value, at_once="1")
    assert set(lab.supervisor.confs) == {f"release__{first}", f"release__{last}"}


def test_old_runs_stand_back_while_the_release_of_a_new_one_goes_on(lab: Lab) -> None:
    old = [lab.run(ended_h_ago=hours) for hours in (60, 50)]
    with pytest.raises(TaskDeferred) as deferred:
        lab.backfill(hours=100, at_once="1")
    new = lab.run()
    lab.look("asset_triggered")
    lab.supervisor.states[f"release__{old[0]}"] = "success"
    with pytest.raises(TaskDeferred) as standing_back:
        _resume(lab, deferred.value, at_once="1")
    assert f"release__{old[1]}" not in lab.supervisor.confs
    assert standing_back.value.trigger.wait_max_s < 60
    lab.supervisor.states[f"release__{new}"] = "success"
    with pytest.raises(TaskDeferred):
        _resume(lab, standing_back.value, at_once="1")
    assert f"release__{old[1]}" in lab.supervisor.confs


def test_a_plan_starts_nothing_and_leaves_no_mark(lab: Lab) -> None:
    run = lab.run(ended_h_ago=48)
    since = (datetime.now(UTC) - timedelta(hours=72)).isoformat()
    report = lab.look("manual", since=since, plan_only="true")
    assert by_run(report)[run][0] == "release"
    assert report["totals"] == {"runs": 1, "release": 1}
    assert report["estimate"]["total_wall_s"] == pytest.approx(30.0)
    assert "assumed" in report["estimate"]["basis"]
    assert lab.supervisor.confs == {}
    assert not [tag for tag in lab.tags(run) if tag.startswith(TAG)]


def test_an_estimate_is_made_from_the_latest_releases(lab: Lab) -> None:
    for seconds in ("10.0", "20.0", "90.0", "hostile"):
        run = lab.run(ended_h_ago=400)
        lab.hook.client.set_tag(run, f"{TAG}.status", "released")
        lab.hook.client.set_tag(run, f"{TAG}.wall_s", seconds)
    for _ in range(3):
        lab.run()
    estimate = lab.look("manual", plan_only="true", at_once="1")["estimate"]
    assert estimate["total_wall_s"] == pytest.approx(60.0)
    assert estimate["basis"] == "the median of 3 releases in these experiments"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"since": "yesterday"}, "since.*no time"),
        ({"until": "2026-01-01T00:00:00Z"}, "without 'since'"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "is not before"),
        ({"since": "2026-01-01T00:00:00Z", "at_once": "0"}, "at_once"),
        ({"at_once": "many"}, "at_once"),
        ({"order": "random"}, "order"),
        ({"lookback_h": "long"}, "lookback_h"),
        ({"run_filter": "x" * 3000}, "run filter"),
    ],
)
def test_bad_parameters_are_refused_in_words(lab: Lab, arguments: dict[str, str], words: str) -> None:
    with pytest.raises(AirflowFailException, match=words):
        lab.look("manual", **arguments)


def test_no_configured_experiment_is_no_error(lab: Lab) -> None:
    operator = WatchTrainingOperator(task_id="start_releases", experiments="[]")
    assert operator.execute(context("scheduled"))["totals"] == {"runs": 0}


def _resume(lab: Lab, deferred: TaskDeferred, **arguments: Any) -> Any:
    assert deferred.kwargs
    return lab.operator(**arguments).execute_complete(context("backfill"), {}, **deferred.kwargs)


def _finish(lab: Lab, deferred: TaskDeferred, **arguments: Any) -> Any:
    """Let every release fail, and go on until the backfill ends."""
    for _ in range(20):
        for run_id in lab.supervisor.states:
            lab.supervisor.states[run_id] = "failed"
        try:
            return _resume(lab, deferred, **arguments)
        except TaskDeferred as again:
            deferred = again
    raise AssertionError("the backfill does not end")


def _remove_artifacts(uri: str) -> None:
    """Empty a run's folder in the store, as a careless lifecycle rule does."""
    prefix = uri.removeprefix("mlflow-artifacts:/") + "/"
    folder = objects.Folder(hook=S3Hook("minio_default"), bucket="mlflow", prefix=prefix)
    paths = sorted(objects.sizes(folder))
    assert "model/MLmodel" in paths
    objects.remove(folder, paths)
