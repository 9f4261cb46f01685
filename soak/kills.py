"""Task processes that are killed at random moments, and services that are killed in the middle of a release."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import Any

import psutil  # type: ignore[import-untyped]

from soak.case import Case, process_of
from soak.fault_proxy import Fault
from soak.rig import Rig
from soak.scenario import Outcome, Scenario
from stack import airflow, minio, mlflow_server, postgres, processes, services
from stack.errors import StackError

_RELEASES = 16
_KILLS_OF_A_RELEASE = 4
# Airflow tries a task four times. The last two tries are left to it.
_TRIES_KILLED = 2
_PAUSE_MAX_S = 6.0
_RESTART_TIMEOUT_S = 180.0
# Airflow takes a task for dead after a minute without a heartbeat. Its next try waits for as long.
_NEXT_TRY_TIMEOUT_S = 300.0
_CREATE, _ALIAS = "/model-versions/create", "/registered-models/alias"


def _kills(kills_max: int, rig: Rig, rng: random.Random) -> Outcome:
    """Kill tasks of one release, each at a random moment of its work."""
    case, killed = Case(rig, rig.take()), 0

    def kill() -> None:
        nonlocal killed
        if killed == kills_max:
            return
        time.sleep(rng.uniform(0.0, _PAUSE_MAX_S))
        running = [task for task in case.tasks() if task["state"] == "running"]
        for task in running:
            process = process_of(task)
            if killed < kills_max and task["try_number"] <= _TRIES_KILLED and process:
                process.kill()
                killed += 1

    case.trigger().await_end(kill)
    return case.outcome({"task killed": killed})


def _service(name: str, task_id: str, rig: Rig, rng: random.Random) -> Outcome:
    """Kill a service while a task of a release runs. The stack's supervisor starts it again."""
    case = Case(rig, rig.take()).trigger()
    case.await_task(task_id, "running", "deferred")
    time.sleep(rng.uniform(0.0, 2.0))
    record = processes.find(rig.context.layout, name)
    if record is None:
        raise StackError(f"{name} does not run.")
    psutil.Process(record.pid).kill()
    deadline = time.monotonic() + _RESTART_TIMEOUT_S
    while processes.find(rig.context.layout, name) in (None, record) or not services.is_ready(rig.context, name):
        if time.monotonic() > deadline:
            raise StackError(f"{name} was not started again within {_RESTART_TIMEOUT_S:.0f} s.")
        time.sleep(1.0)
    case.await_end()
    return case.outcome({f"{name} killed": 1})


def _deferred(rig: Rig, rng: random.Random) -> Outcome:
    """Kill the triggerer while it waits for the end of a training run."""
    run_id = rig.take()
    rig.client.update_run(run_id, status="RUNNING")
    case = Case(rig, run_id).trigger()
    case.await_task("wait_for_training", "deferred")
    record = processes.find(rig.context.layout, "airflow-triggerer")
    if record is None:
        raise StackError("The triggerer does not run.")
    psutil.Process(record.pid).kill()
    time.sleep(rng.uniform(0.0, 5.0))
    rig.client.set_terminated(run_id)
    case.await_end()
    return case.outcome({"airflow-triggerer killed": 1})


def _worker(rig: Rig, rng: random.Random) -> Outcome:
    """Kill the process of LocalExecutor that runs a task, with the task's supervisor in it."""
    case = Case(rig, rig.take()).trigger()
    task = case.await_task("parity_latency", "running")
    time.sleep(rng.uniform(0.0, 2.0))
    process = process_of(task) if task else None
    worker = process.parent() if process else None
    if worker is None:
        return case.outcome({}, f"the task had ended: {case.await_end()}")
    worker.kill()
    case.await_end()
    return case.outcome({"worker killed": 1})


def _two_workers(task_id: str, path: str, rig: Rig, rng: random.Random) -> Outcome:
    """Stop the supervisor of a task until Airflow takes it for dead. Then two workers are in one step."""
    case = Case(rig, rig.take())
    held = rig.mlflow.add(
        Fault(kind="slow", method="POST", path=path, seconds=rng.uniform(2.0, 10.0), about=case.about)
    )
    case.trigger()
    task = case.await_task(task_id, "running")
    while not held.injected and case.await_task(task_id, "running"):
        time.sleep(0.2)
    process = process_of(task) if task else None
    supervisor = process.parent() if process else None
    if task is None or supervisor is None:
        return case.outcome({}, f"the task had ended: {case.await_end()}")
    supervisor.suspend()
    try:
        second = _await_next_try(case, task)
        time.sleep(rng.uniform(0.0, 2.0))
    finally:
        supervisor.resume()
    rig.mlflow.remove(held)
    case.await_end()
    return case.outcome({"two workers in one step": int(second)}, "" if second else "no second worker began")


def _await_next_try(case: Case, task: dict[str, Any]) -> bool:
    deadline = time.monotonic() + _NEXT_TRY_TIMEOUT_S
    while time.monotonic() < deadline:
        found = next(one for one in case.tasks() if one["task_id"] == task["task_id"])
        if found["try_number"] > task["try_number"] and found["state"] == "running":
            return True
        time.sleep(0.3)
    return False


SCENARIOS = [
    *(
        Scenario(name=f"task killed {n}", kind="task killed", run=partial(_kills, _KILLS_OF_A_RELEASE))
        for n in range(1, _RELEASES + 1)
    ),
    # Short: a part of the tests.
    Scenario(name="two tasks killed", kind="task killed", run=partial(_kills, 2)),
    *(
        Scenario(name=f"{name} killed in {task}", kind=f"{name} killed", run=partial(_service, name, task), alone=True)
        for name, task in (
            ("airflow-scheduler", "parity_latency"),
            (airflow.API_SERVER, "export"),
            (minio.NAME, "upload"),
            (mlflow_server.NAME, "register"),
            (postgres.NAME, "parity_latency"),
        )
    ),
    *(
        Scenario(name=f"two workers in {task}", kind="two workers in one step", run=partial(_two_workers, task, path))
        for task, path in (("register", _CREATE), ("promote", _ALIAS))
    ),
    Scenario(name="triggerer killed", kind="airflow-triggerer killed", run=_deferred, alone=True),
    Scenario(name="worker killed", kind="worker killed", run=_worker, alone=True),
]
