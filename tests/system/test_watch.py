"""Releases of new training runs and of a backfill, with a real scheduler and triggerer that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import mlflow
import pytest

from airflow_onnx import defaults
from stack import processes
from stack.layout import tool
from stack.release import WATCH_DAG_ID

from .embedded import WATCHED, RunningStack

pytestmark = pytest.mark.system

# Made of the experiment and the logged model.
MODEL_NAME = f"{WATCHED}-model"
TIMEOUT_S = 400


def kill(stack: RunningStack, *names: str) -> None:
    """Kill services with all their children, as the kernel does when memory is short."""
    for name in names:
        record = processes.find(stack.context.layout, name)
        assert record, name
        os.killpg(record.pid, signal.SIGKILL)
        wait_for(f"{name} does not die", lambda record=record: not record.is_alive())


@contextmanager
def measuring_held(stack: RunningStack) -> Iterator[None]:
    """Let no release end: the pool of the measurements has no slot during the block."""
    path, pool = f"/pools/{defaults.MEASURE_POOL}", {"pool": defaults.MEASURE_POOL, "include_deferred": False}
    stack.api.patch(path, {**pool, "slots": 0})
    yield
    stack.api.patch(path, {**pool, "slots": 1})


def wait_for(failure: str, condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, failure
        # Each request takes time from the tasks that are waited for.
        time.sleep(1.0)
    return found


def release_of(stack: RunningStack, run_id: str) -> dict[str, Any]:
    answer = stack.api.call("GET", f"/dags/release_onnx/dagRuns/release__{run_id}")
    return dict(answer.json()) if answer.ok else {}


def ended(stack: RunningStack, *runs: str) -> bool:
    return all(release_of(stack, run).get("state") in ("success", "failed") for run in runs)


def releases(stack: RunningStack, runs: list[str]) -> list[str]:
    """Return the id of every DAG run of `release_onnx` for one of the runs."""
    found = stack.api.get("/dags/release_onnx/dagRuns", limit=100, order_by="-run_after")["dag_runs"]
    return sorted(row["dag_run_id"] for row in found if (row["conf"] or {}).get("training_run_id") in runs)


def assert_released_once(stack: RunningStack, client: mlflow.MlflowClient, runs: list[str]) -> None:
    assert releases(stack, runs) == sorted(f"release__{run}" for run in runs)
    for run in runs:
        assert release_of(stack, run)["state"] == "success", run
        assert len(client.search_model_versions(f"name='{MODEL_NAME}' and run_id='{run}'")) == 1
        assert client.get_run(run).data.tags["onnx_release.status"] == "released"


def airflow(stack: RunningStack, *arguments: str) -> str:
    """Run Airflow's command line as `docs/operations.md` describes."""
    script = f'source "{stack.context.layout.env_file}" && exec "$@"'
    done = subprocess.run(
        ["bash", "-c", script, "-", tool("airflow"), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@dataclass(frozen=True)
class CrashedBackfill:
    """The runs and the plan of a backfill of two old runs, during which three runs end and services crash."""

    old: list[str]
    new: list[str]
    span: list[str]
    plan: dict[str, Any]
    # The note of the first release at its start.
    note: str


@pytest.fixture(scope="module")
def crashed(stack: RunningStack, client: mlflow.MlflowClient) -> CrashedBackfill:
    """Run the scenario once. The tests check its results."""
    *old, first, second, third = stack.small_runs(*(f"{WATCHED}/{seed}" for seed in range(5)))
    begin = (datetime.now(UTC) - timedelta(days=3)).replace(minute=0, second=0, microsecond=0)
    for number, run in enumerate(old):
        ended_at = begin + timedelta(minutes=2 + 3 * number)
        client.set_terminated(run, end_time=int(ended_at.timestamp() * 1000))
    span = ["--from-date", begin.isoformat(), "--to-date", (begin + timedelta(minutes=19)).isoformat()]
    plan = json.loads(airflow(stack, "onnx-release", "plan", "--dag-id", WATCH_DAG_ID, *span, "--output", "json"))
    assert not any(release_of(stack, run) for run in old), "a plan starts nothing"
    conf = ["--max-active-runs", "2", "--dag-run-conf", '{"at_once": 1}']
    with measuring_held(stack):
        airflow(stack, "backfill", "create", "--dag-id", WATCH_DAG_ID, *span, *conf)
        note = wait_for("the backfill has not begun", lambda: release_of(stack, old[0]))["note"]
        client.set_terminated(first)
        wait_for("no event started the release of the first run", lambda: release_of(stack, first))
    client.set_terminated(second)
    kill(stack, "airflow-triggerer", "airflow-scheduler")
    client.set_terminated(third)
    assert stack.command("up").returncode == 0
    new = [first, second, third]
    wait_for("not all were released", lambda: ended(stack, *old, *new))
    return CrashedBackfill(old=old, new=new, span=span, plan=plan, note=note)


def test_each_run_is_released_once_though_scheduler_and_triggerer_were_killed(
    stack: RunningStack, client: mlflow.MlflowClient, crashed: CrashedBackfill
) -> None:
    assert_released_once(stack, client, [*crashed.old, *crashed.new])


def test_the_end_of_a_training_run_sends_an_asset_event(stack: RunningStack, crashed: CrashedBackfill) -> None:
    dag_runs = stack.api.get(f"/dags/{WATCH_DAG_ID}/dagRuns", limit=100)["dag_runs"]
    assert {"asset_triggered", "backfill"} <= {row["run_type"] for row in dag_runs}


def test_the_plan_matches_the_backfill(crashed: CrashedBackfill) -> None:
    assert crashed.plan["totals"] == {"runs": 2, "release": 2}
    assert [run["training_run_id"] for run in crashed.plan["runs"]] == crashed.old
    assert crashed.plan["estimate"]["total_wall_s"] > 0


def test_the_note_of_a_release_has_the_run_at_the_start_and_the_result_at_the_end(
    stack: RunningStack, crashed: CrashedBackfill
) -> None:
    assert crashed.note == f"small-0 → {MODEL_NAME}"
    title, result = release_of(stack, crashed.old[0])["note"].splitlines()
    assert title.strip() == crashed.note
    assert result.startswith(("● Released", "▲ Released with a warning"))


def test_old_runs_wait_for_new_ones(stack: RunningStack, crashed: CrashedBackfill) -> None:
    first = release_of(stack, crashed.new[0])
    waiting = release_of(stack, crashed.old[1])
    # Times in ISO 8601 with the same zone sort by time.
    assert release_of(stack, crashed.old[0])["start_date"] < first["start_date"]
    assert waiting["start_date"] > first["end_date"]


def test_a_second_backfill_of_the_range_starts_nothing(
    stack: RunningStack, client: mlflow.MlflowClient, crashed: CrashedBackfill
) -> None:
    wait_for("the backfill has not ended", lambda: all(row["completed_at"] for row in backfills(stack)))
    _, begin, _, end = crashed.span
    # As the UI does it, with all intervals again.
    body = {"dag_id": WATCH_DAG_ID, "from_date": begin, "to_date": end, "reprocess_behavior": "completed"}
    stack.api.post("/backfills", body)
    wait_for("the second backfill has not ended", lambda: all(row["completed_at"] for row in backfills(stack)))
    assert len(backfills(stack)) == 2
    assert_released_once(stack, client, crashed.old)


def backfills(stack: RunningStack) -> list[dict[str, Any]]:
    return list(stack.api.get("/backfills", dag_id=WATCH_DAG_ID)["backfills"])
