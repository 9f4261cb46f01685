"""Promotion through the real scheduler: a person answers in Airflow, and aliases move by `move_alias`."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest

from airflow_onnx.tracking import alias_log

from .embedded import PROTECTED, QUICK, RunningStack
from .test_release import RELEASE_TIMEOUT_S, Dag, run_python

pytestmark = pytest.mark.system

MOVE = "move_alias"


def await_question(api: Any, path: str) -> dict[str, Any]:
    """Wait until the task `approve` of a DAG run waits for a person, and return its question."""
    deadline = time.monotonic() + RELEASE_TIMEOUT_S
    while api.get(f"{path}/taskInstances/approve")["state"] != "awaiting_input":
        assert time.monotonic() < deadline, api.get(f"{path}/taskInstances")
        time.sleep(0.5)
    found: dict[str, Any] = api.get(f"{path}/taskInstances/approve/-1/hitlDetails")
    return found


def answered(dag: Dag, choice: str, comment: str = "") -> str:
    """Answer the question of a release, and return the state of its DAG run at the end.

    Airflow repeats a task that was resumed before the scheduler had noted its pause. The question then comes again.
    """
    deadline = time.monotonic() + RELEASE_TIMEOUT_S
    body = {"chosen_options": [choice], "params_input": {"comment": comment}}
    while (state := dag.api.get(dag.path)["state"]) not in ("success", "failed"):
        assert time.monotonic() < deadline, dag.states()
        question = f"{dag.path}/taskInstances/approve/-1/hitlDetails"
        waits = dag.api.get(f"{dag.path}/taskInstances/approve")["state"] == "awaiting_input"
        if waits and not dag.api.get(question)["response_received"]:
            dag.api.patch(question, body)
        time.sleep(1.0)
    return str(state)


def release(stack: RunningStack, client: Any, name: str, seed: int) -> Dag:
    """Train a small model and start its release."""
    run_id = run_python(stack, "-m", "tests.system.small_runs", "promotion", str(seed))
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


def test_a_person_approves_rejects_and_goes_back(stack: RunningStack, client: Any) -> None:
    name = f"promoted-{uuid.uuid4().hex[:8]}"
    first = release(stack, client, name, 1)
    question = await_question(stack.api, first.path)
    assert question["options"] == ["Approve", "Reject"]
    assert "promotion is approve" in question["body"]
    assert client.get_registered_model(name).aliases == {}
    assert answered(first, "Approve", "as agreed") == "success", first.states()
    assert client.get_registered_model(name).aliases == {"candidate": "1", "champion": "1"}

    # Airflow looks for waits that are over every 15 s. The second release goes on meanwhile.
    late = move_alias(stack, model_name=name, alias=PROTECTED, version=1, approval_timeout_h=0.0005)
    second = release(stack, client, name, 2)
    question = await_question(stack.api, second.path)
    assert "speed relative to the champion" in question["body"]
    assert "differ from version 1: position by MAE" in question["body"]
    assert answered(second, "Reject", "too slow") == "failed"
    assert client.get_registered_model(name).aliases == {"candidate": "1", "champion": "1"}
    assert client.get_model_version(name, "2").tags["onnx.approval"].endswith("too slow")
    assert late.end() == "failed"
    assert late.states() == {"verify": "success", "approve": "failed", "move": "upstream_failed"}

    # A person decides again.
    body = {"dry_run": False, "dag_run_id": second.dag_run_id, "task_ids": ["approve"], "include_downstream": True}
    stack.api.post(f"/dags/{second.dag_id}/clearTaskInstances", {**body, "only_failed": False})
    await_question(stack.api, second.path)
    assert answered(second, "Approve") == "success", second.states()
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
