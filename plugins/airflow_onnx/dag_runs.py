"""DAG runs of releases, started and counted from a task or a trigger.

A task has no access to Airflow's database. It calls the API server through its supervisor process.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType

from airflow_onnx.errors import WatchRefused
from onnx_release.errors import Transient
from onnx_release.text import shorten
from onnx_release.training_runs.names import validate_run_id

if TYPE_CHECKING:
    from airflow.sdk import Context

ACTIVE_STATES = ("queued", "running")
# The ids of one call travel in its address, which servers limit to about 8 kB.
IDS_PER_CALL_MAX = 50


class State(Enum):
    """State of a DAG run. `ABSENT` means that no DAG run has the id."""

    ABSENT = "absent"
    ACTIVE = "active"
    SUCCESS = "success"
    FAILED = "failed"


def owner(context: Context) -> str:
    """Return the DAG run of a task as one text, which no other DAG run has."""
    run: Any = context["dag_run"]
    return f"{run.dag_id} {run.run_id}"


def release_dag_run_id(training_run_id: str) -> str:
    """Return the id of the one DAG run that releases a training run."""
    return f"release__{validate_run_id(training_run_id)}"


def start(dag_id: str, dag_run_id: str, conf: dict[str, Any], note: str = "") -> bool:
    """Start a release. Return False if a DAG run of that id exists already, in any state.

    :param dag_id: the release DAG.
    :param note: the note of the DAG run, as Markdown.
    :raises WatchRefused: if Airflow refuses the parameters, or has no such DAG.
    :raises Transient: if Airflow does not answer.
    """
    # `TriggerDagRunOperator` sends the same message, but starts one DAG run for each task.
    # `SUPERVISOR_COMMS` is private in Airflow 3.3. Remove when its task SDK has a function that triggers a DAG run.
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import ErrorResponse, TriggerDagRun

    message = TriggerDagRun(dag_id=dag_id, run_id=dag_run_id, conf=conf, logical_date=None, note=note or None)
    try:
        answer = task_runner.SUPERVISOR_COMMS.send(message)
    except AirflowRuntimeError as error:
        raise _error(dag_id, f"The release {dag_run_id}", error.error.detail or {}) from error
    if isinstance(answer, ErrorResponse):
        if answer.error == ErrorType.DAGRUN_ALREADY_EXISTS:
            return False
        raise _error(dag_id, f"The release {dag_run_id}", answer.detail or {})
    return True


def state(dag_id: str, dag_run_id: str) -> State:
    """Return the state of one DAG run."""
    if not count(dag_id, [dag_run_id]):
        return State.ABSENT
    if count(dag_id, [dag_run_id], ACTIVE_STATES):
        return State.ACTIVE
    return State.SUCCESS if count(dag_id, [dag_run_id], ["success"]) else State.FAILED


def absent(dag_id: str, dag_run_ids: Sequence[str]) -> set[str]:
    """Return the ids without a DAG run. Mostly all or none of them have one, which a single call answers."""
    ids = list(dag_run_ids)
    found = count(dag_id, ids) if ids else 0
    if found == 0:
        return set(ids)
    if found >= len(ids):
        return set()
    half = len(ids) // 2
    return absent(dag_id, ids[:half]) | absent(dag_id, ids[half:])


def count(dag_id: str, dag_run_ids: Sequence[str], states: Sequence[str] | None = None) -> int:
    """Return the number of the DAG runs that exist and are in one of the states, None for any state."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    total = 0
    for begin in range(0, len(dag_run_ids), IDS_PER_CALL_MAX):
        ids = list(dag_run_ids[begin : begin + IDS_PER_CALL_MAX])
        try:
            total += RuntimeTaskInstance.get_dr_count(dag_id, run_ids=ids, states=list(states) if states else None)
        except AirflowRuntimeError as error:
            raise _error(dag_id, f"The count of {len(ids)} releases", error.error.detail or {}) from error
    return total


def _error(dag_id: str, subject: str, detail: dict[str, Any]) -> WatchRefused | Transient:
    status, text = int(detail.get("status_code") or 0), detail.get("detail") or detail.get("message") or detail
    if 400 <= status < 500:
        return WatchRefused(
            subject,
            f"is refused by Airflow ({status}): {shorten(text, 600)}",
            f"Compare the parameters with the form of '{dag_id}', and check that Airflow lists this DAG.",
            code="airflow_refused",
        )
    return Transient(subject, f"failed in Airflow: {shorten(text, 400)}", "Airflow tries again.")
