"""Starts of releases: one for each finished training run, on a real MLflow server."""

from __future__ import annotations

import time

import pytest
from airflow.sdk.exceptions import AirflowFailException

from onnx_release.errors import Transient
from tests.edge.airflow_stand_in import api_error
from tests.edge.releasing import TAG
from tests.edge.watch.watching import Lab, by_run, context


def test_each_finished_run_is_started_once_by_any_type_of_dag_run(lab: Lab) -> None:
    runs = [lab.run() for _ in range(3)]
    lab.start("asset_triggered")
    lab.start("scheduled")
    lab.start("manual")
    assert set(lab.supervisor.confs) == {f"release__{run}" for run in runs}
    assert lab.supervisor.confs[f"release__{runs[0]}"]["training_run_id"] == runs[0]


def test_twenty_runs_that_end_at_the_same_time_are_all_started(lab: Lab) -> None:
    runs = [lab.run(ended_h_ago=10) for _ in range(20)]
    moment = int(time.time() * 1000)
    for run in runs:
        lab.hook.client.set_terminated(run, end_time=moment)
    report = lab.start("asset_triggered")
    assert set(lab.supervisor.confs) == {f"release__{run}" for run in runs}
    assert report["totals"] == {"runs": 20, "release": 20}


def test_a_started_run_is_tagged_with_the_addresses_of_its_release(lab: Lab) -> None:
    run = lab.run()
    lab.start()
    tags = lab.tags(run)
    assert tags[f"{TAG}.status"] == "triggered"
    assert tags[f"{TAG}.dag_run_url"] == f"http://airflow.test/dags/release_onnx/runs/release__{run}"
    assert tags[f"{TAG}.rerun_url"].startswith("http://airflow.test/")
    assert run in tags[f"{TAG}.rerun_url"]


def test_a_crash_before_the_last_tag_starts_no_second_release(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lab.run()
    with monkeypatch.context() as patch:
        patch.setattr(
            "airflow_onnx.watch.start.ReleaseStarter._tag_watched", lambda *_: (_ for _ in ()).throw(SystemExit)
        )
        with pytest.raises(SystemExit):
            lab.start()
    assert f"{TAG}.watched" not in lab.tags(run)
    assert by_run(lab.start())[run][0] == "wait", "its release is in progress"
    assert len(lab.supervisor.confs) == 1


def test_parameters_that_airflow_refuses_are_tagged_and_other_runs_are_released(lab: Lab) -> None:
    first, second = lab.run(ended_h_ago=0.3), lab.run()
    lab.supervisor.fails_with = api_error(400, "Invalid input for param opset: 99 is greater than the maximum")
    lab.start()
    assert "opset" in lab.tags(first)[f"{TAG}.reason"]
    assert lab.tags(first)[f"{TAG}.reason_code"] == "airflow_refused"
    assert set(lab.supervisor.confs) == {f"release__{second}"}


def test_an_outage_of_airflow_is_tried_again(lab: Lab) -> None:
    run = lab.run()
    lab.supervisor.fails_with = api_error(503, "no database")
    with pytest.raises(Transient):
        lab.start()
    lab.start()
    assert list(lab.supervisor.confs) == [f"release__{run}"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"since": "yesterday"}, "since.*not a time"),
        ({"until": "2026-01-01T00:00:00Z"}, "without 'since'"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "is not before"),
        ({"since": "2026-01-01T00:00:00Z", "at_once": "0"}, "at_once"),
        ({"at_once": "many"}, "at_once"),
        ({"order": "random"}, "order"),
        ({"lookback_h": "long"}, "lookback_h"),
        ({"run_filter": "x" * 3000}, "run filter"),
    ],
)
def test_bad_parameters_are_refused_by_name(lab: Lab, arguments: dict[str, str], part: str) -> None:
    with pytest.raises(AirflowFailException, match=part):
        lab.start("manual", **arguments)


def test_an_empty_list_of_experiments_starts_nothing(lab: Lab) -> None:
    operator = lab.operator(experiments="[]")
    assert operator.execute(context("scheduled"))["totals"] == {"runs": 0}
