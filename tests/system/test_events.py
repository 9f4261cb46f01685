"""Events of releases in the live stack: a DAG that an asset event starts, notifiers, and notes of DAG runs."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from typing import Any

import mlflow
import pytest

from .embedded import QUICK, RunningStack
from .test_release import Dag
from .test_watch import wait_for

pytestmark = pytest.mark.system

# The DAG of docs/examples runs after each move of its alias `candidate`.
MODEL, CONSUMER = "radio-onnx", "serve_radio_onnx"


@dataclass(frozen=True)
class Ended:
    """One training run, and three releases of it that ended in different ways."""

    run_id: str
    released: Dag
    refused: Dag
    killed: Dag
    # What the notifiers wrote, in their order: the argument of `release_dag`, and the end of the release.
    notified: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ended(stack: RunningStack, client: mlflow.MlflowClient, small_runs: dict[str, str]) -> Ended:
    """Release at the same time: with success, with a file of inputs that does not exist, and with a killed process."""
    run_id = small_runs["events/81"]
    client.set_terminated(run_id)
    conf = {"training_run_id": run_id, "model_name": MODEL, **QUICK}
    killed, refused, released = (Dag(stack, name, "release_notified") for name in ("killed", "refused", "released"))
    killed.trigger(**conf)
    refused.trigger(**conf, inputs_uri=f"runs:/{run_id}/no/such.npz")
    released.trigger(**conf)
    task = f"{killed.path}/taskInstances/export"
    pid = wait_for(
        "the export has not begun",
        lambda: (found := stack.api.get(task))["state"] == "running" and found["pid"],
    )
    os.kill(pid, signal.SIGKILL)
    assert (killed.end(), refused.end(), released.end()) == ("failed", "failed", "success"), released.states()

    file = stack.context.layout.airflow_home / "notified"
    # Airflow calls a notifier after it has stored the state of the last task.
    wait_for("a notifier was not called", lambda: file.exists() and len(file.read_text().splitlines()) >= 3)
    notified: dict[str, list[dict[str, Any]]] = {}
    for line in file.read_text().splitlines():
        argument, _, end = line.partition(" ")
        notified.setdefault(argument, []).append(json.loads(end))
    return Ended(run_id, released, refused, killed, notified)


def test_a_promotion_starts_the_example_dag_with_the_version(
    stack: RunningStack, client: mlflow.MlflowClient, ended: Ended
) -> None:
    consumed = f"/dags/{CONSUMER}/dagRuns"
    wait_for(
        "the example DAG has not ended",
        lambda: [r["state"] for r in stack.api.get(consumed)["dag_runs"]][:1] == ["success"],
    )
    [run] = stack.api.get(consumed)["dag_runs"]
    assert run["run_type"] == "asset_triggered", "a refused and a failed release send no event"
    [event] = stack.api.get(f"{consumed}/{run['dag_run_id']}/upstreamAssetEvents")["asset_events"]
    assert (event["name"], event["source_run_id"]) == (f"models:/{MODEL}@candidate", "released")
    served = stack.api.xcom(CONSUMER, run["dag_run_id"], "reload")
    version = client.get_model_version_by_alias(MODEL, "candidate")
    assert (served["version"], served["uri"]) == (int(version.version), version.source)
    assert served["sha256"] == version.tags["onnx.sha256"] == ended.released.xcom("export")["sha256"]
    assert served["inputs"] == [{"name": "signal", "dtype": "float32", "shape": ["batch", 64]}]
    assert served["figures"]["mae"] < 1e-5
    assert served["figures"]["speedup_low"] > 0


def test_each_notifier_is_called_once_with_the_end_of_its_release(ended: Ended) -> None:
    assert {argument: len(ends) for argument, ends in ended.notified.items()} == {
        "on_released": 1, "on_refused": 1, "on_failed": 1,
    }  # fmt: skip
    [released], [refused], [failed] = (ended.notified[f"on_{name}"] for name in ("released", "refused", "failed"))
    assert (released["status"], released["dag_run_id"], released["model_name"]) == ("released", "released", MODEL)
    assert (released["version"], released["alias"], released["run_name"]) == (1, "candidate", "small-81")
    assert released["figures"]["size_bytes"] > 0
    assert released["version_url"].endswith(f"/models/{MODEL}/versions/1")
    assert (refused["status"], refused["dag_run_id"], refused["task"]) == ("refused", "refused", "prepare_work")
    assert (refused["code"], refused["training_run_id"]) == ("not_found", ended.run_id)
    assert refused["next_step"]
    assert (failed["status"], failed["dag_run_id"], failed["task"]) == ("failed", "killed", "export")
    assert "its process was killed" in failed["headline"]


def test_a_killed_release_is_recorded_and_its_teardown_succeeds(ended: Ended) -> None:
    states = ended.killed.states()
    assert (states["export"], states["promote"], states["clean_work"]) == ("failed", "upstream_failed", "success")


def test_the_notes_of_the_dag_runs_have_the_results(stack: RunningStack, ended: Ended) -> None:
    signs = {"released": "●▲", "refused": "✖", "killed": "‼"}
    for name, expected in signs.items():
        dag: Dag = getattr(ended, name)
        title, result = [line.strip() for line in stack.api.get(dag.path)["note"].splitlines()]
        assert title == "small-81 → radio-onnx"
        assert result[0] in expected, result
