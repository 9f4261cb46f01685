"""Approval between registration and promotion: the question, the answers, and no move without one."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskAwaitingInput
from airflow.sdk.execution_time import task_runner

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.tracking import alias_log, tags
from tests.edge.airflow_stand_in import Supervisor
from tests.edge.airflow_task import run_task
from tests.edge.releasing import Release, new_release, tags_of, versions_of
from tests.refusals import failed


def answer(choice: str, comment: str | None = None) -> dict[str, Any]:
    """Return the event with which Airflow resumes a task."""
    return {
        "chosen_options": [choice],
        "params_input": {"comment": comment} if comment else {},
        "responded_at": datetime(2026, 11, 27, tzinfo=UTC),
        "responded_by_user": {"id": "7", "name": "bert"},
        "timedout": False,
    }


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    made = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", made, raising=False)
    return made


@pytest.fixture
def asking(hook: MlflowHook, release: Release, judged: Release, supervisor: Supervisor) -> Release:
    """A release whose version is registered and waits for an approval."""
    release.params["promotion"] = "approve"
    release.after(judged, "parity_latency").run("upload", "register")
    with pytest.raises(TaskAwaitingInput) as waiting:
        release.run("approve")
    assert (waiting.value.method_name, waiting.value.timeout.total_seconds()) == ("execute_complete", 72 * 3600)
    return release


def respond(release: Release, event: dict[str, Any]) -> None:
    """Resume the task as Airflow does, in a new process with a new operator."""
    task = release._approve()
    release.running = "approve"
    release.returned["approve"] = task.execute_complete(release.context, event)


def aliases(hook: MlflowHook, release: Release) -> dict[str, str]:
    return dict(hook.client.get_registered_model(release.model_name).aliases)


def test_an_approval_moves_both_aliases_and_records_the_person(
    hook: MlflowHook, asking: Release, supervisor: Supervisor
) -> None:
    assert aliases(hook, asking) == {}, "no alias moves before the answer"
    found = tags_of(hook, asking.training_run_id)
    assert (found["status"], found["last_attempt"].split()[0]) == ("waiting", "waiting")
    (question,) = supervisor.questions
    assert question.options == ["Approve", "Reject"]
    assert question.subject == f"Promote version 1 of {asking.model_name}?"
    assert "the parameter promotion is approve" in str(question.body)
    assert "| mean absolute error | positions |" in str(question.body)

    with failed("no_approval", "champion"):
        asking.run("promote")
    assert aliases(hook, asking) == {}
    respond(asking, answer("Approve", "as agreed"))
    promoted = asking.run("promote")
    assert promoted["alias"] == "candidate, champion"
    assert aliases(hook, asking) == {"candidate": "1", "champion": "1"}
    moves = {move.alias: move for move in alias_log.read(hook, asking.model_name)}
    assert (moves["champion"].by, moves["candidate"].by) == ("bert", "Airflow")
    assert moves["champion"].why == "release of training run small, approved: as agreed"
    found = tags_of(hook, asking.training_run_id)
    assert (found["status"], found["alias"]) == ("released", "candidate, champion")
    (version,) = versions_of(hook, asking)
    assert version.tags[tags.APPROVAL] == "was approved by bert: as agreed"


@pytest.mark.parametrize(
    ("event", "code", "words"),
    [
        (answer("Reject", "<b>too slow</b>"), "rejected", "was rejected by bert: <b>too slow</b>"),
        ({"error": "x", "error_type": "timeout"}, "not_answered", "was not approved in time"),
    ],
)
def test_a_rejection_and_a_time_out_refuse_the_release_and_keep_the_version(
    hook: MlflowHook, asking: Release, event: dict[str, Any], code: str, words: str
) -> None:
    with failed(code, words):
        respond(asking, event)
    found = tags_of(hook, asking.training_run_id)
    assert (found["status"], found["reason_code"]) == ("refused", code)
    assert words in found["reason"]
    asking.clean()
    (version,) = versions_of(hook, asking)
    assert (version.tags[tags.APPROVAL], aliases(hook, asking)) == (words, {})
    assert tags_of(hook, asking.training_run_id)["status"] == "refused"


def test_an_approval_of_other_bytes_moves_nothing(hook: MlflowHook, asking: Release) -> None:
    respond(asking, answer("Approve"))
    given = copy.deepcopy(asking.returned["approve"])
    for changed in ({"sha256": "0" * 64}, {"version": 2}, {"aliases": ["candidate"]}, {"at": ""}):
        asking.returned["approve"] = given | changed
        with failed("no_approval"):
            asking.run("promote")
    assert aliases(hook, asking) == {}


def test_a_release_without_a_reason_skips_the_approval(
    hook: MlflowHook, release: Release, judged: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.after(judged, "parity_latency").run("upload", "register", "approve", "promote")
    assert release.skipped == {"tune", "approve"}
    assert aliases(hook, release) == {"candidate": "1"}
    other = new_release(judged.training_run_id)
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__PROTECTED_ALIASES", "candidate")
    other.after(judged, "parity_latency").run("upload", "register")
    assert other.skipped == {"tune"}
    with failed("no_approval", "candidate is protected"):
        other.run("promote")


def test_two_equal_aliases_are_refused(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.params |= {"promotion": "approve", "champion_alias": "candidate"}
    with failed("same_alias"):
        release.after(judged, "export").run("check")


TASK = """
import os
from airflow.sdk import DAG, BaseOperator
from airflow_onnx.operators import approval

class Asking(BaseOperator):
    def execute(self, context):
        raise approval.awaiting_answer(context, "Promote?", "**body**", 2.5)

with DAG("d", schedule=None):
    Asking(task_id="t")
"""


def test_airflow_puts_the_task_into_its_state_for_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run_task(monkeypatch, tmp_path, TASK, {})
    assert any("AWAITING_INPUT" in str(line.get("event")) for line in lines), lines
