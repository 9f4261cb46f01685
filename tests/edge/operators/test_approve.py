"""Approval between registration and promotion: the question, the answers, and no move without one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskAwaitingInput

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.tracking import alias_log
from onnx_release.training_runs import tags
from tests.edge.airflow_stand_in import Supervisor, answer
from tests.edge.airflow_task import run_task
from tests.edge.releasing import Release, new_release, tags_of, versions_of
from tests.refusals import failed


@pytest.fixture
def asking(hook: MlflowHook, release: Release, judged: Release, supervisor: Supervisor) -> Release:
    """A release whose version is registered and waits for an approval."""
    release.params["promotion"] = "approve"
    release.after(judged, "parity_latency").run("upload", "register")
    ask(release)
    return release


def ask(release: Release) -> None:
    """Run the task `approve` until it waits for a person."""
    with pytest.raises(TaskAwaitingInput) as waiting:
        release.run("approve")
    assert (waiting.value.method_name, waiting.value.timeout.total_seconds()) == ("execute_complete", 72 * 3600)
    release.resumed_with = json.loads(json.dumps(waiting.value.kwargs))


def respond(release: Release, event: dict[str, Any]) -> None:
    """Resume the task as Airflow does, in a new process with a new operator."""
    task = release._approve()
    release.running = "approve"
    release.returned["approve"] = task.execute_complete(release.context, event, **release.resumed_with)


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
    assert question.subject == f"Move champion of {asking.model_name} to version 1?"
    assert "the parameter promotion is approve" in str(question.body)
    assert "| mean absolute error of the worst column | positions |" in str(question.body)

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


def test_a_rejection_does_not_mark_a_version_that_holds_an_alias(hook: MlflowHook, asking: Release) -> None:
    (version,) = versions_of(hook, asking)
    hook.client.set_registered_model_alias(asking.model_name, "candidate", version.version)
    before = version.tags[tags.VERSION_STATUS]
    with failed("rejected", "was rejected by bert"):
        respond(asking, answer("Reject"))
    (version,) = versions_of(hook, asking)
    assert (version.tags[tags.VERSION_STATUS], aliases(hook, asking)) == (before, {"candidate": "1"})
    assert version.tags[tags.APPROVAL] == "was rejected by bert"


def newer_version(hook: MlflowHook, release: Release, *held: str) -> str:
    """Give aliases of the model to a version of a newer training run, as another release does."""
    run_id = hook.client.create_run("0").info.run_id
    hook.client.set_terminated(run_id, "FINISHED", 2**42)
    (version,) = versions_of(hook, release)
    made = hook.client.create_model_version(release.model_name, version.source, run_id, version.tags)
    for alias in held:
        hook.client.set_registered_model_alias(release.model_name, alias, made.version)
    return str(made.version)


def test_an_approval_after_a_newer_release_moves_no_alias_back(hook: MlflowHook, asking: Release) -> None:
    newer_version(hook, asking, "candidate", "champion")
    respond(asking, answer("Approve"))
    assert asking.run("promote")["alias"] is None
    assert aliases(hook, asking) == {"candidate": "2", "champion": "2"}
    found = tags_of(hook, asking.training_run_id)
    assert (found["status"], found["version"]) == ("released", "1")
    assert "'champion' stays at version 2" in found["alias_note"]
    assert alias_log.read(hook, asking.model_name) == ()


def test_an_approval_holds_only_for_the_aliases_of_the_question(
    hook: MlflowHook, asking: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__PROTECTED_ALIASES", "candidate")
    newer = newer_version(hook, asking, "candidate")
    ask(asking)
    hook.client.delete_model_version(asking.model_name, newer)
    respond(asking, answer("Approve"))
    with failed("no_approval", "candidate is protected"):
        asking.run("promote")
    assert aliases(hook, asking) == {}
    ask(asking)
    respond(asking, answer("Approve"))
    assert asking.run("promote")["alias"] == "candidate, champion"


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
        requested = approval.Approval(model_name="net", version=1, sha256="ab", aliases=("champion",))
        raise approval.awaiting_answer(context, requested, "**body**", 2.5)

with DAG("d", schedule=None):
    Asking(task_id="t")
"""


def test_airflow_puts_the_task_into_its_state_for_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run_task(monkeypatch, tmp_path, TASK, {})
    assert any("AWAITING_INPUT" in str(line.get("event")) for line in lines), lines
