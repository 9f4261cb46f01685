"""The bell of the watch: when it rings, what it remembers, and what it sits out; on a real MLflow server."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from airflow.sdk.execution_time import task_runner

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import client_settings
from airflow_onnx.triggers.mlflow_finished_runs import MlflowFinishedRunsTrigger
from airflow_onnx.triggers.release_dag_runs import ReleaseDagRunsTrigger
from airflow_onnx.watch import poll as bell_module
from airflow_onnx.watch.poll import LATE_MS, WATERMARK, Bell
from airflow_onnx.watch.queries import WATCHED, Scope
from tests.edge.airflow_stand_in import Supervisor
from tests.edge.conftest import Services

HOUR_MS = 3_600_000


class State(dict[str, Any]):
    """Airflow's asset state, which outlives a triggerer."""

    async def aget(self, key: str, default: Any = None) -> Any:
        return self.get(key, default)

    async def aset(self, key: str, value: Any) -> None:
        self[key] = value


def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.fixture
def experiment(hook: MlflowHook) -> str:
    return str(hook.client.create_experiment(f"bell-{uuid.uuid4().hex[:8]}"))


def ended_run(hook: MlflowHook, experiment: str, ended_ms: int | None = None) -> str:
    run_id = str(hook.client.create_run(experiment).info.run_id)
    hook.client.set_terminated(run_id, end_time=ended_ms or now_ms())
    return run_id


def make_bell(experiment: str, state: State | None = None, lookback_h: float = 24.0) -> Bell:
    return Bell(Scope(experiments=(experiment,)), lookback_h, state)


def poll(hook: MlflowHook, bell: Bell) -> set[str]:
    async def once() -> set[str]:
        async with httpx.AsyncClient(**client_settings(hook.server)) as client:
            return await bell.new_runs(client, hook.server)

    return asyncio.run(once())


def test_it_rings_once_for_each_run_that_ends(hook: MlflowHook, experiment: str) -> None:
    bell = make_bell(experiment)
    going_on = hook.client.create_run(experiment).info.run_id
    assert poll(hook, bell) == set()
    first = ended_run(hook, experiment)
    assert poll(hook, bell) == {first}
    assert poll(hook, bell) == set(), "undecided still, but it has rung"
    second = ended_run(hook, experiment)
    hook.client.set_terminated(going_on)
    assert poll(hook, bell) == {second, going_on}


def test_a_new_triggerer_rings_for_what_is_undecided_only(hook: MlflowHook, experiment: str) -> None:
    undecided, decided = ended_run(hook, experiment), ended_run(hook, experiment)
    hook.client.set_tag(decided, WATCHED, "new")
    assert poll(hook, make_bell(experiment)) == {undecided}


def test_the_watermark_narrows_the_poll_and_outlives_the_triggerer(hook: MlflowHook, experiment: str) -> None:
    state = State()
    old = ended_run(hook, experiment, now_ms() - HOUR_MS)
    assert poll(hook, make_bell(experiment, state)) == {old}
    assert state == {}, "not everything is decided"
    hook.client.set_tag(old, WATCHED, "new")
    assert poll(hook, make_bell(experiment, state)) == set()
    assert abs(state[WATERMARK] - now_ms()) < HOUR_MS // 60
    long_before = ended_run(hook, experiment, now_ms() - HOUR_MS)
    late = ended_run(hook, experiment, now_ms() - LATE_MS // 2)
    assert poll(hook, make_bell(experiment, state)) == {late}, f"{long_before} is left to the schedule"


def test_a_triggerer_that_was_down_looks_back_to_its_watermark(hook: MlflowHook, experiment: str) -> None:
    state = State({WATERMARK: now_ms() - 3 * HOUR_MS})
    meanwhile = ended_run(hook, experiment, now_ms() - 2 * HOUR_MS)
    ended_run(hook, experiment, now_ms() - 5 * HOUR_MS)
    assert poll(hook, make_bell(experiment, state)) == {meanwhile}


@pytest.mark.parametrize("stored", ["hostile", None, -5, 10**14])
def test_a_watermark_that_makes_no_sense_is_no_reason_to_miss_a_run(
    hook: MlflowHook, experiment: str, stored: Any
) -> None:
    run = ended_run(hook, experiment, now_ms() - LATE_MS // 2)
    assert poll(hook, make_bell(experiment, State({WATERMARK: stored}))) == {run}


def test_an_experiment_may_be_made_later(hook: MlflowHook, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"later-{uuid.uuid4().hex[:8]}"
    bell = make_bell(name)
    assert poll(hook, bell) == set()
    run = ended_run(hook, hook.client.create_experiment(name))
    assert poll(hook, bell) == {run}
    # Its list is asked for now and then only, once there is one.
    monkeypatch.setattr(bell_module, "EXPERIMENTS_EVERY_MS", -1)
    other = ended_run(hook, hook.client.create_experiment(f"other-{uuid.uuid4().hex[:8]}"))
    assert other not in poll(hook, bell)
    everything = make_bell("*", lookback_h=0.05)
    assert {run, other} <= poll(hook, everything)


def make_trigger(experiment: str, **changes: Any) -> MlflowFinishedRunsTrigger:
    arguments = {
        "experiments": [experiment],
        "run_filter": "",
        "mlflow_conn_id": "mlflow_default",
        "lookback_h": 24.0,
        "poll_interval_s": 0.1,
    }
    return MlflowFinishedRunsTrigger(**(arguments | changes))


async def first(events: AsyncIterator[Any]) -> Any:
    async for event in events:
        return event.payload
    raise AssertionError("the trigger ended without an event")


def test_the_trigger_travels_as_text_without_a_secret(experiment: str) -> None:
    path, arguments = make_trigger(experiment).serialize()
    assert path == "airflow_onnx.triggers.mlflow_finished_runs.MlflowFinishedRunsTrigger"
    assert MlflowFinishedRunsTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)


def test_the_trigger_sits_out_an_outage_and_a_missing_connection(
    hook: MlflowHook, experiment: str, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_onnx.triggers.mlflow_finished_runs.TROUBLE_S", 0.2)
    run = ended_run(hook, experiment)
    connection = "AIRFLOW_CONN_MLFLOW_LATER"
    services.stop("mlflow")
    with ThreadPoolExecutor(1) as triggerer:
        ringing = triggerer.submit(asyncio.run, first(make_trigger(experiment, mlflow_conn_id="mlflow_later").run()))
        time.sleep(1)
        monkeypatch.setenv(connection, json.dumps({"conn_type": "mlflow", "host": hook.server.tracking_uri}))
        time.sleep(1)
        assert not ringing.done()
        services.start("mlflow")
        assert ringing.result(timeout=30) == {"count": 1, "training_run_ids": [run]}


@pytest.mark.parametrize(("states", "ended_min", "waits"), [("rr", 1, True), ("rs", 1, False), ("rs", 2, True)])
def test_waiting_for_releases_ends_when_enough_have_ended(
    monkeypatch: pytest.MonkeyPatch, states: str, ended_min: int, waits: bool
) -> None:
    words = {"r": "running", "s": "success"}
    supervisor = Supervisor(states={str(number): words[letter] for number, letter in enumerate(states)})
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    trigger = ReleaseDagRunsTrigger(
        dag_run_ids=list(supervisor.states), ended_min=ended_min, wait_max_s=0.3, poll_interval_s=0.1
    )
    path, arguments = trigger.serialize()
    assert ReleaseDagRunsTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)
    assert (asyncio.run(first(trigger.run()))["waited_s"] > 0) == waits
