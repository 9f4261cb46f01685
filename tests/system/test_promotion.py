"""Promotion through the real scheduler: a person answers in Airflow, and aliases move by `move_alias`.

The person uses the pages of releases in Chromium where it is installed, else Airflow's API.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Frame, expect

from airflow_onnx.tracking import alias_log
from tests.browser.browsing import CHROMIUM, TIMEOUT_MS, Visit, chromium

from .embedded import PROTECTED, QUICK, RunningStack
from .test_release import RELEASE_TIMEOUT_S, Dag

pytestmark = pytest.mark.system

MOVE = "move_alias"


@pytest.fixture(scope="module")
def visit(stack: RunningStack) -> Iterator[Visit | None]:
    """A person in front of the pages, None without a browser."""
    if not CHROMIUM.exists():
        yield None
        return
    with chromium() as browser:
        begun = Visit.begin(stack.context, browser)
        yield begun
        begun.browser.close()
        assert begun.complaints() == []


@pytest.fixture(scope="module")
def name() -> str:
    """The registered model of this module."""
    return f"promoted-{uuid.uuid4().hex[:8]}"


def answer(shown: Frame, choice: str, comment: str) -> None:
    """Answer the question on a page."""
    shown.get_by_role("button", name=f"{choice}…").click()
    dialog = shown.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text(re.compile(f"^{choice} the (release|move) of .*promoted-"))
    dialog.get_by_label("Comment").fill(comment)
    dialog.get_by_role("button", name=choice).click()
    expect(dialog).to_be_hidden()


def answer_in_the_tab(visit: Visit, dag: Dag, choice: str, comment: str) -> None:
    """Answer the question of a release in the tab of its DAG run, beside the gates."""
    visit.open(f"/dags/release_onnx/runs/{dag.dag_run_id}/plugin/onnx-release")
    shown = visit.frame()
    expect(shown.get_by_role("heading", name=re.compile("^Move champion of .* to version"))).to_be_visible()
    expect(shown.get_by_role("table", name="Gates")).to_contain_text("passed")
    answer(shown, choice, comment)


def await_question(api: Any, path: str) -> dict[str, Any]:
    """Wait until the task `approve` of a DAG run waits for a person, and return its question."""
    deadline = time.monotonic() + RELEASE_TIMEOUT_S
    while api.get(f"{path}/taskInstances/approve")["state"] != "awaiting_input":
        assert time.monotonic() < deadline, api.get(f"{path}/taskInstances")
        time.sleep(0.5)
    found: dict[str, Any] = api.get(f"{path}/taskInstances/approve/-1/hitlDetails")
    return found


def answered(dag: Dag, visit: Visit | None, choice: str, comment: str = "") -> str:
    """Answer the question of a release after two seconds, and return the state of its DAG run at the end.

    Airflow repeats a task that was resumed before the scheduler had noted its pause. The question then comes again.
    """
    deadline = time.monotonic() + RELEASE_TIMEOUT_S
    body = {"chosen_options": [choice], "params_input": {"comment": comment}}
    while (state := dag.api.get(dag.path)["state"]) not in ("success", "failed"):
        assert time.monotonic() < deadline, dag.states()
        question = f"{dag.path}/taskInstances/approve/-1/hitlDetails"
        time.sleep(2.0)
        waits = dag.api.get(f"{dag.path}/taskInstances/approve")["state"] == "awaiting_input"
        if waits and not dag.api.get(question)["response_received"]:
            if visit:
                answer_in_the_tab(visit, dag, choice, comment)
            else:
                dag.api.patch(question, body)
    return str(state)


def release(stack: RunningStack, client: Any, name: str, run_id: str) -> Dag:
    """End a training run and start its release."""
    client.set_terminated(run_id)
    conf = {**QUICK, "promotion": "approve", "model_name": name, "champion_margin": 0.99}
    return Dag(stack, f"approve-{uuid.uuid4().hex[:8]}").trigger(training_run_id=run_id, **conf)


def move_alias(stack: RunningStack, **conf: Any) -> Dag:
    """Start a move of an alias."""
    return Dag(stack, f"move-{uuid.uuid4().hex[:8]}", MOVE).trigger(reason="slow in the field", **conf)


def events(stack: RunningStack, name: str, alias: str) -> list[int]:
    """Return the versions in the events of the asset of a model and alias, the oldest first."""
    uri = f"models:/{name}@{alias}"
    found = stack.api.get("/assets/events", name_pattern=uri, order_by="timestamp", limit=100)["asset_events"]
    return [event["extra"]["version"] for event in found if event["name"] == uri]


def test_a_person_approves_rejects_and_goes_back(
    stack: RunningStack, client: Any, visit: Visit | None, name: str, small_runs: dict[str, str]
) -> None:
    first = release(stack, client, name, small_runs["promotion/1"])
    question = await_question(stack.api, first.path)
    assert question["options"] == ["Approve", "Reject"]
    assert "promotion is approve" in question["body"]
    assert client.get_registered_model(name).aliases == {}
    if visit:
        visit.open(f"/plugin/onnx-releases/onnx-release/releases?model={name}&state=waiting")
        expect(visit.frame().get_by_role("table")).to_contain_text("waits for approval")
    assert answered(first, visit, "Approve", "as agreed") == "success", first.states()
    if visit:
        shown = visit.frame()
        expect(shown.get_by_text("Approved and moved.")).to_be_visible(timeout=TIMEOUT_MS)
        expect(shown.get_by_role("heading", name="version 1")).to_be_visible(timeout=TIMEOUT_MS)
        expect(shown.get_by_text("@champion", exact=True)).to_be_visible(timeout=TIMEOUT_MS)
    assert client.get_registered_model(name).aliases == {"candidate": "1", "champion": "1"}

    # Airflow looks for waits that are over every 15 s. The second release goes on meanwhile.
    late = move_alias(stack, model_name=name, alias=PROTECTED, version=1, approval_timeout_h=0.0005)
    second = release(stack, client, name, small_runs["promotion/2"])
    question = await_question(stack.api, second.path)
    assert "speed relative to the champion" in question["body"]
    assert "differ from version 1: position by MAE" in question["body"]
    assert answered(second, visit, "Reject", "too slow") == "failed"
    if visit:
        expect(visit.frame().get_by_text("Rejected. No alias has moved.")).to_be_visible(timeout=TIMEOUT_MS)
        reason = visit.frame().get_by_text(re.compile("was rejected by .*: too slow"))
        expect(reason.first).to_be_visible(timeout=TIMEOUT_MS)
    assert client.get_registered_model(name).aliases == {"candidate": "1", "champion": "1"}
    assert client.get_model_version(name, "2").tags["onnx.approval"].endswith("too slow")
    assert late.end() == "failed"
    assert late.states() == {"verify": "success", "approve": "failed", "move": "upstream_failed"}

    # A person decides again.
    body = {"dry_run": False, "dag_run_id": second.dag_run_id, "task_ids": ["approve"], "include_downstream": True}
    stack.api.post(f"/dags/{second.dag_id}/clearTaskInstances", {**body, "only_failed": False})
    await_question(stack.api, second.path)
    assert answered(second, None, "Approve") == "success", second.states()
    assert client.get_registered_model(name).aliases == {"candidate": "2", "champion": "2"}

    back = move_alias(stack, model_name=name, alias="champion", version=1, expected_version=2)
    assert back.end() == "success", back.states()
    assert back.states() == {"verify": "success", "approve": "skipped", "move": "success"}
    assert client.get_registered_model(name).aliases == {"candidate": "2", "champion": "1"}
    assert (events(stack, name, "champion"), events(stack, name, "candidate")) == ([1, 2, 1], [1, 2])
    moves = [
        (move.alias, move.from_version, move.to_version)
        for move in alias_log.moves_in(client.get_registered_model(name).tags)
    ]
    assert [move for move in moves if move[0] == "champion"] == [
        ("champion", None, 1), ("champion", 1, 2), ("champion", 2, 1),
    ]  # fmt: skip
    assert [move for move in moves if move[0] != "champion"] == [("candidate", None, 1), ("candidate", 1, 2)]


def test_a_protected_alias_goes_back_on_the_page_of_its_model_after_an_approval(
    stack: RunningStack, client: Any, visit: Visit | None, name: str
) -> None:
    if not visit:
        pytest.skip("Without Chromium nobody opens the page.")
    client.set_registered_model_alias(name, PROTECTED, "2")
    visit.open(f"/plugin/onnx-releases/onnx-release/models/{name}")
    shown = visit.frame()
    shown.get_by_role("button", name=f"Move @{PROTECTED}…").click()
    dialog = shown.get_by_role("dialog")
    expect(dialog).to_contain_text(f"Move @{PROTECTED} of {name} from v2 to v1.")
    dialog.get_by_label("Reason").fill("slow in the field")
    dialog.get_by_role("button", name="Move the alias").click()
    expect(shown.get_by_role("heading", name=f"Move of @{PROTECTED} from v2 to v1")).to_be_visible()
    shown.get_by_role("button", name="Approve…").wait_for(timeout=1000 * RELEASE_TIMEOUT_S)
    answer(shown, "Approve", "go")
    expect(shown.get_by_text("Approved and moved.")).to_be_visible(timeout=1000 * RELEASE_TIMEOUT_S)
    assert client.get_registered_model(name).aliases[PROTECTED] == "1"
    expect(shown.get_by_role("row", name=re.compile("^v2 "))).to_contain_text("rolled back")
    shown.get_by_role("heading", name="Alias log").click()
    moves = shown.get_by_role("table", name="Moves of aliases")
    expect(moves).to_contain_text(re.compile(r"slow in the field \(approved by .*: go\)"))
