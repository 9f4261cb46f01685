"""Differences between versions of Airflow: the branch of Airflow 3.2, which the installed Airflow does not take."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from airflow.sdk import Param
from airflow.sdk.exceptions import TaskDeferred

from airflow_onnx import compat
from airflow_onnx.ui.airflow_state import AirflowRelease, TaskState

TASK = UUID("01a21d78-39b9-7f89-81cc-62b68cfc9475")
COMMENT = Param("", type=["null", "string"], title="Comment", description="The reason.", maxLength=500)


def test_airflow_3_2_waits_for_an_answer_with_the_trigger_of_the_standard_provider() -> None:
    waiting = compat.deferred_input(
        TASK, {"requested": {"version": 2}}, ("Approve", "Reject"), {"comment": COMMENT}, timedelta(hours=1)
    )

    assert isinstance(waiting, TaskDeferred)
    assert waiting.method_name == "execute_complete"
    assert waiting.kwargs == {"requested": {"version": 2}}
    _, arguments = waiting.trigger.serialize()
    assert (arguments["ti_id"], arguments["options"], arguments["defaults"]) == (TASK, ["Approve", "Reject"], None)
    assert arguments["params"]["comment"]["schema"]["maxLength"] == 500
    assert timedelta(minutes=59) < arguments["timeout_datetime"] - datetime.now(UTC) <= timedelta(hours=1)


def test_a_trigger_without_a_store_keeps_its_watermark_in_memory() -> None:
    assert compat.asset_state_store(object()) is None


@pytest.mark.parametrize("state", compat.WAITING_FOR_ANSWER)
def test_the_pages_name_a_release_that_waits_for_an_answer(state: str) -> None:
    task = TaskState(
        task_id="approve", state=state, queued_at=None, started_at=None, ended_at=None, pool="default_pool"
    )
    release = AirflowRelease(
        dag_id="release_churn", dag_run_id="one", state="running", conf={}, started_at=None, ended_at=None, note="",
        tasks=(task,),
    )  # fmt: skip

    assert release.waits_for_approval
