"""Stand-in for Airflow's supervisor: start and count of DAG runs of releases, and questions to a person."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import (
    CreateHITLDetailPayload,
    DRCount,
    ErrorResponse,
    GetDRCount,
    OKResponse,
    TriggerDagRun,
)


@dataclass
class Supervisor:
    """DAG runs by id, with their parameters, states and DAGs. `fails_with` is the error of the next start.

    A DAG run without an entry in `dags` belongs to any DAG. `questions` are those to a person.
    """

    confs: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    dags: dict[str, str] = field(default_factory=dict)
    fails_with: ErrorResponse | None = None
    questions: list[CreateHITLDetailPayload] = field(default_factory=list)

    def send(self, msg: Any) -> Any:
        """Answer as Airflow's supervisor does."""
        if isinstance(msg, TriggerDagRun):
            return self._start(msg)
        if isinstance(msg, CreateHITLDetailPayload):
            self.questions.append(msg)
            return OKResponse(ok=True)
        assert isinstance(msg, GetDRCount), msg
        found = [
            self.states[run_id]
            for run_id in msg.run_ids or []
            if run_id in self.states and self.dags.get(run_id, msg.dag_id) == msg.dag_id
        ]
        return DRCount(count=sum(msg.states is None or state in msg.states for state in found))

    def _start(self, message: TriggerDagRun) -> OKResponse | ErrorResponse:
        assert message.logical_date is None
        if self.fails_with is not None:
            error, self.fails_with = self.fails_with, None
            raise AirflowRuntimeError(error)
        if message.run_id in self.states and self.dags.get(message.run_id, message.dag_id) == message.dag_id:
            return ErrorResponse(error=ErrorType.DAGRUN_ALREADY_EXISTS)
        self.confs[message.run_id], self.states[message.run_id] = dict(message.conf or {}), "queued"
        self.dags[message.run_id] = message.dag_id
        return OKResponse(ok=True)


def api_error(status: int, text: str) -> ErrorResponse:
    """Return the supervisor's response to an error of Airflow's API server."""
    detail = {"status_code": status, "message": text, "detail": {"reason": "value_error", "message": text}}
    return ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail)


def answer(choice: str, comment: str | None = None) -> dict[str, Any]:
    """Return the event with which Airflow resumes a task after a person has answered."""
    return {
        "chosen_options": [choice],
        "params_input": {"comment": comment} if comment else {},
        "responded_at": datetime(2026, 11, 27, tzinfo=UTC),
        "responded_by_user": {"id": "7", "name": "bert"},
        "timedout": False,
    }
