"""The end of a release that Airflow's own process never wrote: on a real scheduler, with a person who ends it."""

from __future__ import annotations

import mlflow
import pytest

from .embedded import QUICK, WATCHED, RunningStack
from .test_watch import ended, release_of, wait_for

pytestmark = pytest.mark.system


def test_a_release_that_a_person_ends_is_failed_and_a_later_one_replaces_it(
    stack: RunningStack, client: mlflow.MlflowClient, small_runs: dict[str, str]
) -> None:
    run = small_runs[f"{WATCHED}/71"]
    path = f"/dags/release_onnx/dagRuns/manual__{run}"
    conf = {"training_run_id": run, **QUICK}
    stack.api.post("/dags/release_onnx/dagRuns", {"dag_run_id": f"manual__{run}", "logical_date": None, "conf": conf})

    def status() -> str:
        return client.get_run(run).data.tags.get("onnx_release.status", "")

    wait_for("the release has not begun", lambda: status() == "running")
    wait_for("the sensor has not deferred", lambda: _state(stack, path, "wait_for_training") == "deferred")
    stack.api.patch(path, {"state": "failed"})
    wait_for("the training run still says running", lambda: status() == "failed")
    tags = client.get_run(run).data.tags
    assert "'wait_for_training' failed without a message" in tags["onnx_release.reason"]
    assert tags["onnx_release.dag_run_id"] == f"manual__{run}"
    wait_for("the DAG run has not ended", lambda: stack.api.get(path)["state"] in ("success", "failed"))

    client.set_terminated(run)
    wait_for("the watch released nothing", lambda: ended(stack, run))
    assert release_of(stack, run)["state"] == "success"
    tags = client.get_run(run).data.tags
    assert (tags["onnx_release.status"], tags.get("onnx_release.reason")) == ("released", None)


def _state(stack: RunningStack, path: str, task_id: str) -> str | None:
    state: str | None = stack.api.get(f"{path}/taskInstances/{task_id}")["state"]
    return state
