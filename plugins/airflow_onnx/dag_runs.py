"""The DAG runs of `release_onnx`, seen from a task or a trigger: started once, counted, never read from the database.

A task may not touch Airflow's database; it asks the API server through its supervisor. `TriggerDagRunOperator` speaks
the same message, but starts one DAG run a task, and a scheduler that starts twenty tasks for twenty runs is late.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any
from urllib.parse import quote

from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType

from airflow_onnx import validation
from airflow_onnx.deployment import settings
from onnx_release.errors import Refused, Transient

RELEASE_DAG_ID = "release_onnx"
ALIVE = ("queued", "running")
ENDED = ("success", "failed")
# The ids of one question travel in its address, which servers limit to some 8 kB.
IDS_A_QUESTION = 50


class State(Enum):
    """What became of a DAG run; `ABSENT` when there is none of that id."""

    ABSENT = "absent"
    ALIVE = "alive"
    SUCCESS = "success"
    FAILED = "failed"


def release_id(training_run_id: str) -> str:
    """Return the id of the DAG run that releases a training run: one, whoever asks for it."""
    return f"release__{validation.run_id(training_run_id)}"


def url(dag_run_id: str) -> str:
    """Return the address of the release's page in Airflow."""
    return f"{settings.airflow_url()}/dags/{RELEASE_DAG_ID}/runs/{quote(dag_run_id, safe='')}"


def start(dag_run_id: str, conf: dict[str, Any]) -> bool:
    """Start the release; False when there is a DAG run of that id already, in whatever state.

    Raises `Refused` when Airflow refuses the parameters or has no such DAG, `Transient` when it does not answer.
    """
    from airflow.sdk.execution_time.comms import ErrorResponse, TriggerDagRun

    answer = _ask(TriggerDagRun(dag_id=RELEASE_DAG_ID, run_id=dag_run_id, conf=conf, logical_date=None), dag_run_id)
    if isinstance(answer, ErrorResponse):
        if answer.error == ErrorType.DAGRUN_ALREADY_EXISTS:
            return False
        raise _error(dag_run_id, answer.detail or {})
    return True


def state(dag_run_id: str) -> State:
    """Return what became of one DAG run."""
    if not count([dag_run_id]):
        return State.ABSENT
    if count([dag_run_id], ALIVE):
        return State.ALIVE
    return State.SUCCESS if count([dag_run_id], ["success"]) else State.FAILED


def count(dag_run_ids: Sequence[str], states: Sequence[str] | None = None) -> int:
    """Return how many of the DAG runs exist, or are in one of the states."""
    from airflow.sdk.execution_time.comms import GetDRCount

    total = 0
    for begin in range(0, len(dag_run_ids), IDS_A_QUESTION):
        ids = list(dag_run_ids[begin : begin + IDS_A_QUESTION])
        question = GetDRCount(dag_id=RELEASE_DAG_ID, run_ids=ids, states=list(states) if states else None)
        total += _ask(question, f"{len(ids)} releases").count
    return total


def _ask(message: Any, subject: str) -> Any:
    from airflow.sdk.execution_time import task_runner

    try:
        return task_runner.SUPERVISOR_COMMS.send(message)
    except AirflowRuntimeError as error:
        raise _error(subject, error.error.detail or {}) from error


def _error(dag_run_id: str, detail: dict[str, Any]) -> Refused | Transient:
    status, said = int(detail.get("status_code") or 0), detail.get("detail") or detail.get("message") or detail
    subject = f"release {dag_run_id}"
    if 400 <= status < 500:
        hint = f"Check the parameters against the form of '{RELEASE_DAG_ID}', and that Airflow lists this DAG."
        return Refused(subject, f"Airflow refuses it ({status}): {str(said)[:600]}", hint)
    return Transient(subject, f"Airflow did not answer as it should: {str(said)[:400]}", "It is tried again.")
