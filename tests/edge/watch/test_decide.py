"""Decisions about training runs, on a real MLflow server."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from airflow.sdk.exceptions import AirflowFailException
from mlflow.entities import LoggedModelOutput

from airflow_onnx.tracking.model_registry import VersionRequest, ensure_version
from onnx_release.training_runs import tags
from soak.fault_proxy import proxy
from tests.edge.releasing import TAG
from tests.edge.watch.watching import Lab, by_run


def test_weights_are_released_if_the_run_names_their_inputs_and_a_factory(lab: Lab) -> None:
    bare, described, complete, script, two = (lab.run(model=False) for _ in range(5))
    files = {bare: ["checkpoints/best.ckpt"], described: ["best.ckpt"], complete: ["best.ckpt"], script: ["script.pt"]}
    for run, paths in (files | {two: ["w/a.ckpt", "w/b.ckpt"]}).items():
        for path in paths:
            lab.hook.client.log_text(run, "weights", path)
    for run in (described, complete, script):
        lab.hook.client.set_tag(run, f"{TAG}.input_spec", '[{"name": "x", "dtype": "float32", "shape": ["batch", 3]}]')
    lab.hook.client.set_tag(complete, f"{TAG}.factory", "our.nets:make")
    report = by_run(lab.start())
    assert report[complete][0] == "release"
    assert report[script][0] == "release", "a file of this suffix may be a whole model"
    codes = {run: lab.tags(run)[f"{TAG}.reason_code"] for run in (bare, described, two)}
    assert codes == {bare: "no_input_spec", described: "no_factory", two: "several_model_files"}
    for run in (bare, described):
        assert "`factory`" in report[run][1]
        assert "`input_spec`" in report[run][1]
    assert "w/a.ckpt, w/b.ckpt" in report[two][1]


def test_models_of_different_names_are_refused_by_the_watch_too(lab: Lab) -> None:
    run, named = lab.run(), lab.run()
    for one in (run, named):
        lab.hook.client.log_artifacts(one, str(lab.model_folder), "teacher")
    lab.hook.client.set_tag(named, f"{TAG}.logged_model_name", "teacher")
    report = by_run(lab.start())
    assert report[named][0] == "release"
    assert lab.tags(run)[f"{TAG}.reason_code"] == "several_logged_models"
    assert "'teacher', 'model'" in report[run][1]


def test_a_run_that_goes_on_is_called_running(lab: Lab) -> None:
    run = lab.run()
    lab.hook.client.update_run(run, "RUNNING")
    assert by_run(lab.backfill(plan_only="true"))[run] == ("skip", "the run is still running")


def test_only_releasable_runs_are_started_and_the_others_are_handled_once(lab: Lab) -> None:
    without, failed = lab.run(model=False), lab.run(status="FAILED")
    late = lab.run(ended_h_ago=23)
    too_old = lab.run(ended_h_ago=25)
    report = by_run(lab.start())
    assert report[without] == ("skip", "the run has no PyTorch model")
    assert report[late][0] == "release"
    assert failed not in report
    assert too_old not in report
    assert "no PyTorch model" in lab.tags(without)[f"{TAG}.watched"]
    assert by_run(lab.start()) == {}, "every run is handled"


def test_a_run_of_a_clock_that_is_ahead_is_released(lab: Lab) -> None:
    run = lab.run(ended_h_ago=-5)
    assert by_run(lab.start())[run][0] == "release"


def test_a_pickle_is_refused_unless_the_deployment_allows_pickles(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = lab.hook.client.create_run(lab.experiment_id).info.run_id
    lab.hook.client.log_artifacts(pickled, str(lab.model_folder), "model")
    lab.hook.client.log_text(pickled, "x", "other/data/model.pth")
    lab.hook.client.log_text(pickled, "flavors: {}", "other/MLmodel")
    lab.hook.client.set_tag(pickled, f"{TAG}.logged_model_name", "model")
    only_pickle = lab.hook.client.create_run(lab.experiment_id).info.run_id
    lab.hook.client.log_text(only_pickle, "x", "model/data/model.pth")
    lab.hook.client.log_text(only_pickle, "flavors: {}", "model/MLmodel")
    for run in (pickled, only_pickle):
        lab.hook.client.set_terminated(run)
    report = by_run(lab.start())
    assert report[pickled][0] == "release"
    assert report[only_pickle][0] == "refuse"
    assert "allow_pickle" in lab.tags(only_pickle)[f"{TAG}.reason"]
    assert lab.tags(only_pickle)[f"{TAG}.reason_code"] == "pickle"
    assert lab.tags(only_pickle)[f"{TAG}.status"] == "refused"
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE", "True")
    assert by_run(lab.backfill(plan_only="true"))[only_pickle][0] == "release"


def test_a_run_with_a_manual_release_waits_and_is_released_if_that_fails(lab: Lab) -> None:
    run = lab.run()
    lab.hook.client.set_tag(run, f"{TAG}.status", "running")
    lab.hook.client.set_tag(run, f"{TAG}.dag_run_id", "manual")
    lab.supervisor.states["manual"] = "running"
    assert by_run(lab.start())[run] == ("wait", "its release is in progress as DAG run manual")
    lab.supervisor.states["manual"] = "failed"
    assert by_run(lab.start())[run][0] == "release"


@pytest.mark.parametrize("where", ["run", "experiment"])
def test_a_tag_of_the_run_or_its_experiment_names_the_registered_model(lab: Lab, where: str) -> None:
    run = lab.run()
    if where == "run":
        lab.hook.client.set_tag(run, f"{TAG}.model_name", "beacons-onnx")
    else:
        lab.hook.client.set_experiment_tag(lab.experiment_id, f"{TAG}.model_name", "beacons-onnx")
    lab.start(params={"alias": "nightly", "model_name": "other"})
    conf = lab.supervisor.confs[f"release__{run}"]
    assert conf == {"training_run_id": run, "model_name": "beacons-onnx", "alias": "nightly"}


def test_a_hostile_model_name_is_refused_and_other_runs_are_released(lab: Lab) -> None:
    hostile, good = lab.run(ended_h_ago=0.3), lab.run()
    lab.hook.client.set_tag(hostile, f"{TAG}.model_name", "x' or name != '../../")
    report = by_run(lab.start())
    assert report[hostile][0] == "refuse"
    assert "model name" in report[hostile][1].lower()
    assert set(lab.supervisor.confs) == {f"release__{good}"}


def test_a_filter_selects_runs_and_an_invalid_one_is_refused(lab: Lab) -> None:
    chosen, _ = lab.run(name="chosen"), lab.run(name="other")
    assert list(by_run(lab.start(run_filter="attributes.run_name = 'chosen'"))) == [chosen]
    with pytest.raises(AirflowFailException, match="Invalid clause"):
        lab.start(run_filter="this is no filter")


def test_a_version_of_reduced_precision_is_no_exact_release(lab: Lab) -> None:
    name, exact, int8 = f"m-{uuid.uuid4().hex[:8]}", lab.run(), lab.run()
    for run_id in (exact, int8):
        request = VersionRequest(
            name=name,
            training_run_id=run_id,
            sha256="a" * 64,
            source="s3://heimdall-models/x",
            description="",
            tags={tags.VERSION_PRECISION: "int8"},
        )
        ensure_version(lab.hook, request)
    only = f"attributes.run_id = '{int8}'"
    report = lab.start(params={"model_name": name, "tune": True, "tune_precisions": ["int8"]}, run_filter=only)
    assert by_run(report)[int8] == ("skip", f"released as version 2 of '{name}'")
    assert by_run(lab.start(params={"model_name": name}))[exact][0] == "release"
    assert set(lab.supervisor.confs) == {f"release__{exact}"}


@contextmanager
def requests_noted(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield the paths of the requests to MLflow during the block."""
    paths: list[str] = []

    def note(_: str, path: str, status: int, body: bytes) -> tuple[int, bytes]:
        paths.append(path.partition("?")[0].partition("/mlflow/")[2])
        return status, body

    with proxy(lab.hook.server.tracking_uri, note) as address:
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": address}))
        yield paths


def test_a_plan_reads_the_logged_models_of_many_runs_together(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    client, runs = lab.hook.client, [lab.run(ended_h_ago=6 - number, model=False) for number in range(4)]
    ids = [client.create_logged_model(lab.experiment_id, "net", run).model_id for run in (*runs, runs[3])]
    for run, model_id in zip((*runs, runs[3]), ids, strict=True):
        client.log_outputs(run, [LoggedModelOutput(model_id, ids.index(model_id))])
        client.log_model_artifacts(model_id, str(lab.model_folder))
        client.finalize_logged_model(model_id, "READY")
    client.delete_logged_model(ids[1])
    with requests_noted(lab, monkeypatch) as paths:
        report = lab.backfill(plan_only="true")
    assert [row["action"] for row in report["runs"]] == ["release", "skip", "release", "release"]
    # One for the runs with one model, one for the run with two.
    assert paths.count("logged-models/search") == 2
    files = f"logged-models/{ids[0]}/artifacts/directories"
    assert [path for path in paths if ids[0] in path] == [files]
    assert f"logged-models/{ids[1]}" in paths, "the search omits a deleted model"


def test_the_folder_of_a_recorded_model_is_listed_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, bare = lab.run(ended_h_ago=2), lab.run(ended_h_ago=1)
    row = {"artifact_path": "model", "utc_time_created": "2024-05-01 10:11:12.123456"}
    lab.hook.client.set_tag(recorded, "mlflow.log-model.history", json.dumps([row]))
    listings = []
    for run in (recorded, bare):
        with requests_noted(lab, monkeypatch) as paths:
            report = lab.backfill(plan_only="true", run_filter=f"attributes.run_id = '{run}'")
        assert by_run(report)[run][0] == "release"
        listings.append(paths.count("artifacts/list"))
    assert listings == [2, 3]


def test_a_plan_asks_once_about_the_versions_and_dag_runs_of_many_runs(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [lab.run(ended_h_ago=6 - number) for number in range(6)]
    request = VersionRequest(
        name="planned", training_run_id=runs[2], sha256="0" * 64, source="s3://elsewhere/x", description=""
    )
    ensure_version(lab.hook, request)
    lab.supervisor.states[f"release__{runs[4]}"] = "running"
    counted, send = [], lab.supervisor.send
    monkeypatch.setattr(lab.supervisor, "send", lambda message: [counted.append(message), send(message)][1])
    with requests_noted(lab, monkeypatch) as searches:
        report = lab.backfill(params={"model_name": "planned"}, plan_only="true")
    assert [row["training_run_id"] for row in report["runs"]] == runs, "in the order of their ends"
    expected = ["release", "release", "skip", "release", "wait", "release"]
    assert [row["action"] for row in report["runs"]] == expected
    assert searches.count("model-versions/search") == 1
    # All six, their halves down to the active one, and its state.
    assert len(counted) < 2 * len(runs)


def test_a_run_whose_version_was_retired_is_released_by_a_person_only(lab: Lab) -> None:
    exact, reduced, again = lab.run(), lab.run(), lab.run()
    record = "version 3 of net at 2026-01-01T00:00:00Z by anna: old"
    for run, tag in ((exact, tags.RETIRED), (reduced, tags.of_precision(tags.RETIRED, "int8")), (again, tags.RETIRED)):
        lab.hook.client.set_tag(run, tag, record)
    lab.hook.client.set_tag(again, tags.DAG_RUN_ID, "manual__1")
    lab.hook.client.set_tag(again, tags.DAG_RUN_URL, "http://airflow.test/dags/release_onnx/runs/manual__1")
    lab.supervisor.states["manual__1"] = "running"
    found = by_run(lab.backfill(plan_only="true"))
    assert (found[exact][0], record in found[exact][1]) == ("skip", True)
    assert found[reduced][0] == "release", "an int8 version is not the release"
    assert found[again][0] == "wait"
    int8 = {"tune": True, "tune_precisions": ["int8"]}
    assert by_run(lab.backfill(params=int8, plan_only="true"))[reduced][0] == "skip"
    # A poll records the reason, so that it is not found again.
    lab.start()
    assert record in lab.tags(exact)[tags.WATCHED]
