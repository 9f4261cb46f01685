"""Promotion through the real scheduler: a person approves in Airflow, and the alias goes back by `move_alias`."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest

from .embedded import QUICK, RunningStack
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


def test_a_person_approves_rejects_and_goes_back(stack: RunningStack, client: Any) -> None:
    name = f"promoted-{uuid.uuid4().hex[:8]}"
    first = release(stack, client, name, 1)
    question = await_question(stack.api, first.path)
    assert question["options"] == ["Approve", "Reject"]
    assert "promotion is approve" in question["body"]
    assert client.get_registered_model(name).aliases == {}
    assert answered(first, "Approve", "as agreed") == "success", first.states()
    assert client.get_registered_model(name).aliases == {"candidate": "1", "champion": "1"}

    rejected = release(stack, client, name, 2)
    await_question(stack.api, rejected.path)
    assert answered(rejected, "Reject", "too slow") == "failed"
    assert client.get_registered_model(name).aliases == {"candidate": "1", "champion": "1"}
    assert client.get_model_version(name, "2").tags["onnx.approval"].endswith("too slow")

    third = release(stack, client, name, 3)
    await_question(stack.api, third.path)
    assert answered(third, "Approve") == "success", third.states()
    assert client.get_registered_model(name).aliases == {"candidate": "3", "champion": "3"}

    dag_run_id = f"back-{uuid.uuid4().hex[:8]}"
    conf = {"model_name": name, "alias": "champion", "version": 1, "expected_version": 3, "reason": "slow in the field"}
    stack.api.post(f"/dags/{MOVE}/dagRuns", {"dag_run_id": dag_run_id, "logical_date": None, "conf": conf})
    back = Dag(stack, dag_run_id)
    back.path = f"/dags/{MOVE}/dagRuns/{dag_run_id}"
    assert back.end() == "success", back.states()
    assert back.states() == {"verify": "success", "approve": "skipped", "move": "success"}
    assert client.get_registered_model(name).aliases == {"candidate": "3", "champion": "1"}
