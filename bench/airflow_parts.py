"""Cost of Airflow around a release: parsing of DAG files, overhead of tasks, and the whole release of a huge model."""

from __future__ import annotations

import importlib
import runpy
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench.figure import Figure, Result, Setting, part, progress
from bench.models import HUGE
from bench.servers import QUICK, embedded_stack
from bench.sides import Side, Step, interleave, median_and_range, peak_of
from bench.step import Meter
from bench.watch.training_runs import Watched, train_runs
from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.errors import StackError
from stack.layout import REPO
from stack.release import DAG_ID, Release
from stack.setup import client_environment

DAG_PARSE = Figure("dag_parse_s", "s", at_most=0.5)
OVERHEAD = Figure("task_overhead_s", "s")
BIG = Figure("big_model", at_most=1.3, condition="released")

SDK = "airflow.sdk"
DAGS = ("release_onnx", "watch_training")
HEAVY = ("torch", "onnx", "onnxruntime", "mlflow", "boto3")
RELEASES_MAX = 3
# Modules that tasks import at run time; Airflow is imported before, in the supervisor that forks them.
IMPORTS = {
    "export": "onnx_release.export.export_model",
    "check": "onnx_release.check.static_checks",
    "parity_latency": "onnx_release.benchmark.benchmark_model",
    "register": "onnx_release.benchmark.benchmark_model",
    "promote": "mlflow",
}
# Lines of a task's log around the work of its operator.
_BEFORE, _OPENED, _AFTER = "::group::Pre Execute", "::endgroup::", "::group::Post Execute"


@part("dag_parse", 1, DAG_PARSE)
def dag_parse(setting: Setting) -> Iterator[Result]:
    """Load each DAG file in a fresh process: seconds of the slower one above importing `airflow.sdk`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        targets = {SDK: SDK} | {dag: str(REPO / "dags" / f"{dag}.py") for dag in DAGS}
        steps = {
            name: Step("bench.airflow_parts:parse", (target,), {"AIRFLOW_HOME": home})
            for name, target in targets.items()
        }
        sides = [Side(name=name, steps=lambda step=step: [step]) for name, step in steps.items()]  # type: ignore[misc]
        # The first process writes Airflow's configuration, and the first import the byte code.
        interleave(sides, 1)
        costs = interleave(sides, setting.rounds)
    above = {dag: [one.wall_s - sdk.wall_s for one, sdk in zip(costs[dag], costs[SDK], strict=True)] for dag in DAGS}
    slowest = max(above, key=lambda dag: statistics.median(above[dag]))
    detail = {
        "value_of": slowest,
        "above_sdk_s": above,
        "sdk_s": [one.wall_s for one in costs[SDK]],
        "heavy_modules": sorted({name for dag in DAGS for one in costs[dag] for name in one.steps[0]["heavy"]}),
    }
    value, spread = median_and_range(above[slowest])
    yield DAG_PARSE.result(value, detail, spread, n=setting.rounds)


def parse(meter: Meter, target: str) -> dict[str, Any]:
    """Import Airflow's SDK, and load a DAG file if the target is one."""
    with meter.work():
        importlib.import_module(SDK)
        if target.endswith(".py"):
            runpy.run_path(target)
    return {"heavy": [name for name in HEAVY if name in sys.modules]}


@part("tasks", 4, OVERHEAD)
def tasks(setting: Setting) -> Iterator[Result]:
    """Release a small model several times: wall time outside the operators per task, with LocalExecutor.

    Imports within the operators count as their work; they are reported separately.
    """
    count = min(RELEASES_MAX, setting.rounds)
    with embedded_stack() as context:
        watched = Watched(context)
        releases = []
        for run in train_runs(context, range(count)):
            watched.delays([run])
            watched.await_releases([run])
            releases.append(_release_times(context, run))
            progress(f"{releases[-1]['overhead_s']:.2f} s for each of {releases[-1]['tasks']} tasks")
    detail = {
        "made_of_s": {
            name: statistics.median(one["made_of_s"][name] for one in releases) for name in releases[0]["made_of_s"]
        },
        "imports_in_the_work_s": {
            task: Step("bench.step:imports", (module,)).run()["import_s"] for task, module in IMPORTS.items()
        },
        "releases": releases,
        "release_params": QUICK,
    }
    value, spread = median_and_range([one["overhead_s"] for one in releases])
    yield OVERHEAD.result(value, detail, spread, n=count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Moments of a task in seconds since 1970; its operator's `execute` lasts from `begins` to `ends`."""

    scheduled: float
    queued: float
    started: float
    entered: float
    begins: float
    ends: float
    ended: float


def _release_times(context: Context, training_run_id: str) -> dict[str, Any]:
    api = AirflowApi(context)
    dag_run_id = Release(api, training_run_id).dag_run_id
    path = f"/dags/{DAG_ID}/dagRuns/{quote(dag_run_id, safe='')}"
    run = api.get(path)
    if run["state"] != "success":
        raise StackError(f"The release {dag_run_id} ended with the state {run['state']}.")
    times = {}
    for row in api.get(f"{path}/taskInstances")["task_instances"]:
        if row["state"] == "success":
            log = api.get(f"{path}/taskInstances/{row['task_id']}/logs/{row['try_number']}", full_content="true")
            scheduled, queued, started, ended = (
                _seconds(row[name]) for name in ("scheduled_when", "queued_when", "start_date", "end_date")
            )
            entered, begins, ends = work_of(log["content"], started, ended)
            times[row["task_id"]] = Times(
                scheduled=scheduled,
                queued=queued,
                started=started,
                entered=entered,
                begins=begins,
                ends=ends,
                ended=ended,
            )
    return summary(_seconds(run["start_date"]), _seconds(run["end_date"]), times)


def summary(begun: float, over: float, times: dict[str, Times]) -> dict[str, Any]:
    """Return a DAG run's wall time, its work, and the parts of the remaining time in seconds per task."""
    count = len(times)
    work_s = {name: one.ends - one.begins for name, one in times.items()}
    parts: defaultdict[str, float] = defaultdict(float)
    previous = begun
    for one in sorted(times.values(), key=lambda one: one.started):
        # Overlapping tasks have no wait between them.
        parts["until_scheduled"] += max(0.0, one.scheduled - previous)
        parts["until_queued"] += one.queued - one.scheduled
        parts["until_started"] += one.started - one.queued
        parts["process"] += one.entered - one.started
        parts["dag_file_and_arguments"] += one.begins - one.entered
        parts["result_and_end"] += one.ended - one.ends
        previous = one.ended
    parts["until_run_ends"] += over - previous
    return {
        "wall_s": over - begun,
        "tasks": count,
        "overhead_s": (over - begun - sum(work_s.values())) / count,
        "made_of_s": {name: seconds / count for name, seconds in parts.items()},
        "work_s": work_s,
        "tasks_with_marks_in_their_log": sum(one.begins > one.started for one in times.values()),
    }


def work_of(lines: Sequence[dict[str, Any]], started: float, ended: float) -> tuple[float, float, float]:
    """Return the start of a task's preparation, and start and end of its operator.

    Without marks in the log, as for a deferred task, all of the task's time counts as the operator's.
    """
    entered, begins, ends = started, started, ended
    inside = False
    for line in lines:
        event, timestamp = str(line.get("event", "")), line.get("timestamp")
        if not timestamp:
            continue
        if event == _BEFORE:
            entered, inside = _seconds(timestamp), True
        elif event == _OPENED and inside:
            begins, inside = _seconds(timestamp), False
        elif event == _AFTER:
            ends = _seconds(timestamp)
    return (entered, begins, ends) if started <= entered <= begins <= ends <= ended else (started, started, ended)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@part("big", 9, BIG)
def big(setting: Setting) -> Iterator[Result]:
    """Export a model of more than 2 GiB, the limit of a protocol buffer: peak over its bytes; then release it.

    The goal also applies to the check, and the release must end with a version.
    """
    size, weights = setting.models.size(HUGE), setting.models.weights(HUGE)
    weights_bytes = weights.stat().st_size
    folder = setting.folder / "big"
    folder.mkdir()
    steps = {}
    for name in ("export", "check", "compare"):
        found = Step(f"bench.release_steps:{name}", (size, str(weights), str(folder))).run()
        found["peak_over_model"] = peak_of(found) / weights_bytes
        progress(f"{name}: {found['wall_s']:.0f} s, peak {found['peak_over_model']:.2f} times the model")
        steps[name] = found
    released = _released(size, weights)
    detail = {"weights_bytes": weights_bytes, "steps": steps, "release": released}
    small = BIG.at_most is not None and steps["check"]["peak_over_model"] <= BIG.at_most
    condition = small and released["state"] == "success"
    yield BIG.result(steps["export"]["peak_over_model"], detail, condition=condition)


def _released(size: str, weights: Path) -> dict[str, Any]:
    """Log the weights as a training run does, and wait for their release by the watch."""
    with embedded_stack() as context:
        step = Step("bench.watch.training_steps:log_weights", (size, str(weights)), client_environment(context))
        release = Release(AirflowApi(context), step.run()["run_id"])
        progress("the run has ended; its release begins")
        release.await_dags()
        release.await_begin(lambda: None)
        began = time.perf_counter()
        succeeded = release.follow(lambda _: None, lambda: None)
        wall_s = time.perf_counter() - began
        if not succeeded:
            return {"state": "failed", "failure": release.failure()}
        outcome = release.outcome()
        return {
            "state": release.state(),
            "wall_s": wall_s,
            "task_s": {task.name: task.seconds for task in release.tasks()},
            "version": outcome.version["version"] if outcome else None,
            "artifact_bytes": outcome.artifact["size_bytes"] if outcome else None,
        }
