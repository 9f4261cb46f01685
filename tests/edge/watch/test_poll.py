"""The poller of the watch and its trigger, on a real MLflow server."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from airflow.sdk.execution_time import task_runner

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import AsyncMlflowRest
from airflow_onnx.triggers.mlflow_finished_runs import MlflowFinishedRunsTrigger
from airflow_onnx.triggers.release_dag_runs import ReleaseDagRunsTrigger
from airflow_onnx.watch import poll as poll_module
from airflow_onnx.watch.poll import LATE_MS, WATERMARK, RunPoller
from onnx_release.training_runs import tags
from onnx_release.training_runs.queries import Scope
from tests.edge.airflow_stand_in import Supervisor
from tests.edge.door import Door

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
    return str(hook.client.create_experiment(f"poll-{uuid.uuid4().hex[:8]}"))


def ended_run(hook: MlflowHook, experiment: str, ended_ms: int | None = None) -> str:
    run_id = str(hook.client.create_run(experiment).info.run_id)
    hook.client.set_terminated(run_id, end_time=ended_ms or now_ms())
    return run_id


def make_poller(experiment: str, state: State | None = None, lookback_h: float = 24.0) -> RunPoller:
    return RunPoller(Scope(experiments=(experiment,)), lookback_h, state)


def poll(hook: MlflowHook, poller: RunPoller) -> set[str]:
    async def once() -> set[str]:
        async with AsyncMlflowRest(hook.server) as rest:
            return await poller.new_runs(rest)

    return asyncio.run(once())


def test_each_run_that_ends_is_returned_once(hook: MlflowHook, experiment: str) -> None:
    poller = make_poller(experiment)
    going_on = hook.client.create_run(experiment).info.run_id
    assert poll(hook, poller) == set()
    first = ended_run(hook, experiment)
    assert poll(hook, poller) == {first}
    assert poll(hook, poller) == set(), "not handled yet, but returned before"
    second = ended_run(hook, experiment)
    hook.client.set_terminated(going_on)
    assert poll(hook, poller) == {second, going_on}


def test_a_new_triggerer_returns_unhandled_runs_only(hook: MlflowHook, experiment: str) -> None:
    unhandled, handled = ended_run(hook, experiment), ended_run(hook, experiment)
    hook.client.set_tag(handled, tags.WATCHED, "new")
    assert poll(hook, make_poller(experiment)) == {unhandled}


def test_the_watermark_limits_the_search_and_outlives_the_triggerer(hook: MlflowHook, experiment: str) -> None:
    state = State()
    old = ended_run(hook, experiment, now_ms() - HOUR_MS)
    assert poll(hook, make_poller(experiment, state)) == {old}
    assert state == {}, "not every run is handled"
    hook.client.set_tag(old, tags.WATCHED, "new")
    assert poll(hook, make_poller(experiment, state)) == set()
    assert abs(state[WATERMARK] - now_ms()) < HOUR_MS // 60
    long_before = ended_run(hook, experiment, now_ms() - HOUR_MS)
    late = ended_run(hook, experiment, now_ms() - LATE_MS // 2)
    assert poll(hook, make_poller(experiment, state)) == {late}, f"{long_before} is found by the schedule"


def test_a_triggerer_that_was_down_searches_from_its_watermark(hook: MlflowHook, experiment: str) -> None:
    state = State({WATERMARK: now_ms() - 3 * HOUR_MS})
    meanwhile = ended_run(hook, experiment, now_ms() - 2 * HOUR_MS)
    ended_run(hook, experiment, now_ms() - 5 * HOUR_MS)
    assert poll(hook, make_poller(experiment, state)) == {meanwhile}


@pytest.mark.parametrize("stored", ["hostile", None, -5, 10**14])
def test_an_invalid_watermark_hides_no_run(hook: MlflowHook, experiment: str, stored: Any) -> None:
    run = ended_run(hook, experiment, now_ms() - LATE_MS // 2)
    assert poll(hook, make_poller(experiment, State({WATERMARK: stored}))) == {run}


def test_an_experiment_may_be_created_later(hook: MlflowHook, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"later-{uuid.uuid4().hex[:8]}"
    poller = make_poller(name)
    assert poll(hook, poller) == set()
    run = ended_run(hook, hook.client.create_experiment(name))
    assert poll(hook, poller) == {run}
    # The list of experiments is not requested at each poll.
    monkeypatch.setattr(poll_module, "EXPERIMENTS_EVERY_MS", -1)
    other = ended_run(hook, hook.client.create_experiment(f"other-{uuid.uuid4().hex[:8]}"))
    assert other not in poll(hook, poller)
    everything = make_poller("*", lookback_h=0.05)
    assert {run, other} <= poll(hook, everything)


def make_trigger(experiment: str, **changes: Any) -> MlflowFinishedRunsTrigger:
    arguments = {
        "experiments": [experiment],
        "routed": ["*"],
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


def test_the_trigger_is_serialized_as_json_without_a_secret(experiment: str) -> None:
    path, arguments = make_trigger(experiment).serialize()
    assert path == "airflow_onnx.triggers.mlflow_finished_runs.MlflowFinishedRunsTrigger"
    assert MlflowFinishedRunsTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)


def test_the_trigger_goes_on_after_an_outage_and_a_missing_connection(
    hook: MlflowHook, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_onnx.triggers.mlflow_finished_runs.RETRY_INTERVAL_S", 0.2)
    run = ended_run(hook, experiment)
    connection = "AIRFLOW_CONN_MLFLOW_LATER"
    door = Door(hook.server.tracking_uri)
    with ThreadPoolExecutor(1) as triggerer:
        firing = triggerer.submit(asyncio.run, first(make_trigger(experiment, mlflow_conn_id="mlflow_later").run()))
        time.sleep(1)
        monkeypatch.setenv(connection, json.dumps({"conn_type": "mlflow", "host": door.url}))
        time.sleep(1)
        assert not firing.done()
        with door.opened():
            assert firing.result(timeout=120) == {"count": 1, "training_run_ids": [run]}


@pytest.mark.parametrize(("states", "ended_min", "waits"), [("rr", 1, True), ("rs", 1, False), ("rs", 2, True)])
def test_waiting_for_releases_ends_when_enough_have_ended(
    monkeypatch: pytest.MonkeyPatch, states: str, ended_min: int, waits: bool
) -> None:
    names = {"r": "running", "s": "success"}
    supervisor = Supervisor(states={str(number): names[letter] for number, letter in enumerate(states)})
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    trigger = ReleaseDagRunsTrigger(
        dag_runs={"release": list(supervisor.states)}, ended_min=ended_min, wait_max_s=0.3, poll_interval_s=0.1
    )
    path, arguments = trigger.serialize()
    assert ReleaseDagRunsTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)
    assert (asyncio.run(first(trigger.run()))["waited_s"] > 0) == waits
