"""Ends of releases that no task could record, which the watch writes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_onnx import airflow_urls
from airflow_onnx.task_outcome import XCOM_KEY
from onnx_release.training_runs import tags
from tests.edge.watch.watching import Lab, context

OUTCOME = {"status": "failed", "reason": "The store is down.", "headline": "Failed: the store is down."}
OLD = f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"


class Tasks:
    """The tasks of the DAG run of a release: one that failed, with the outcome that it left."""

    task_id = "start_releases"

    def get_task_states(self, dag_id: str, run_ids: list[str]) -> dict[str, dict[str, str]]:
        return {run_ids[0]: {"export": "success", "upload": "failed", "clean_work": "failed"}}

    def xcom_pull(self, task_ids: str, dag_id: str, run_id: str, key: str) -> Any:
        assert (dag_id, key) == ("release_onnx", XCOM_KEY)
        return OUTCOME if task_ids == "upload" else None


def running(lab: Lab, state: str | None, **more: str) -> str:
    """Create a run whose release is in progress by its tags."""
    run_id = lab.run()
    dag_run_id = f"release__{run_id}"
    if state:
        lab.supervisor.states[dag_run_id] = state
    url = airflow_urls.dag_run_url("release_onnx", dag_run_id)
    found = {
        tags.STATUS: "running", tags.LAST_ATTEMPT: f"running {OLD}", tags.LAST_ATTEMPT_URL: url,
        tags.DAG_RUN_URL: url, tags.DAG_RUN_ID: dag_run_id, tags.ATTEMPTED_AT: OLD, tags.WATCHED: "new",
        tags.RERUN_URL: airflow_urls.rerun_url("release_onnx", run_id, {"mae_max": 0.5}, 4000),
    }  # fmt: skip
    lab.hook.set_tags(run_id, found | more)
    return run_id


def watch(lab: Lab) -> None:
    lab.operator().execute(context("scheduled") | {"ti": Tasks()})


def test_the_reason_of_a_failed_dag_run_is_written_once(lab: Lab) -> None:
    run_id = running(lab, "failed")
    watch(lab)
    found = lab.tags(run_id)
    assert (found[tags.STATUS], found[tags.HEADLINE]) == ("failed", OUTCOME["headline"])
    assert found[tags.REASON] == "Task 'upload': The store is down."
    assert airflow_urls.conf_of(found[tags.RERUN_URL])["mae_max"] == 0.5
    watch(lab)
    assert lab.tags(run_id) == found


@pytest.mark.parametrize(
    ("state", "more"),
    [
        ("running", {}),
        ("queued", {tags.STATUS: "triggered"}),
        (None, {tags.ATTEMPTED_AT: "now"}),
        ("failed", {tags.LAST_ATTEMPT_URL: "http://other.test/dags/release_onnx/runs/x"}),
        ("failed", {tags.LAST_ATTEMPT_URL: "http://airflow.test/dags/../../runs/%00"}),
    ],
    ids=["active", "queued", "just begun", "another Airflow", "hostile"],
)
def test_a_release_that_may_go_on_or_is_another_airflows_stays(
    lab: Lab, state: str | None, more: dict[str, str]
) -> None:
    # The time of the test, not that of its collection.
    begun = {tag: tags.now() if text == "now" else text for tag, text in more.items()}
    run_id = running(lab, state, **begun)
    before = lab.tags(run_id)
    watch(lab)
    assert lab.tags(run_id) == before


def test_a_dag_run_that_was_deleted_is_a_failure(lab: Lab) -> None:
    ids = [running(lab, None), running(lab, None, **{tags.STATUS: "triggered", tags.LAST_ATTEMPT: ""})]
    watch(lab)
    for run_id in ids:
        assert lab.tags(run_id)[tags.STATUS] == "failed"
        assert "was deleted" in lab.tags(run_id)[tags.REASON]


def test_a_version_with_an_alias_is_a_release(lab: Lab) -> None:
    run_id = running(lab, "failed")
    name = f"m-{run_id}"
    lab.hook.client.create_registered_model(name)
    of_version = {
        tags.VERSION_SHA256: "c" * 64,
        tags.VERSION_DAG_RUN: airflow_urls.dag_run_url("release_onnx", f"release__{run_id}"),
    }
    lab.hook.client.create_model_version(name, "s3://models/x", run_id=run_id, tags=of_version)
    without_version = running(lab, "failed")
    lab.hook.client.set_registered_model_alias(name, "candidate", "1")
    watch(lab)
    found = lab.tags(run_id)
    assert (found[tags.STATUS], found[tags.VERSION], found[tags.ALIAS]) == ("released", "1", "candidate")
    assert (found[tags.REGISTERED_MODEL], found[tags.SHA256]) == (name, "c" * 64)
    assert lab.tags(without_version)[tags.STATUS] == "failed"
