"""What Airflow adds to the work of a release's tasks."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from bench.results import Result, say
from bench.setting import Setting
from bench.sides import Step, run_step
from bench.watch.latency import Scene
from bench.watch.stacks import QUICK, embedded_stack
from bench.watch.trainings import train_runs
from onnx_release.latency.host import describe_host
from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.errors import StackError
from stack.release import DAG_ID, Release

RELEASES_MAX = 3
# What the tasks import when they run; Airflow itself is imported before, as each task is forked from a supervisor.
IMPORTS = {
    "export": "onnx_release.export.export_model",
    "check": "onnx_release.check.static_checks",
    "parity_latency": "onnx_release.benchmark.benchmark_model",
    "register": "onnx_release.benchmark.benchmark_model",
    "promote": "mlflow",
}
# The lines that frame what a task's log says of its own work.
_BEFORE, _OPENED, _AFTER = "::group::Pre Execute", "::endgroup::", "::group::Post Execute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When a task went from hand to hand, in seconds since 1970; `begins` and `ends` frame its operator's `execute`."""

    scheduled: float
    queued: float
    started: float
    entered: float
    begins: float
    ends: float
    ended: float


def measure(setting: Setting) -> Iterator[Result]:
    """`task_overhead_s`: a DAG run's wall time without the time within its operators, over the number of its tasks.

    A small model, so that little else happens; released several times, one after the other, on the whole local stack
    with LocalExecutor. The operators' own imports count as their work: they are reported apart.
    """
    count = min(RELEASES_MAX, setting.rounds)
    with embedded_stack() as context:
        scene = Scene(context)
        releases = []
        for run in train_runs(context, range(count)):
            scene.delays([run])
            scene.rest([run])
            releases.append(_release(context, run))
            say(f"{releases[-1]['overhead_s']:.2f} s for each of {releases[-1]['tasks']} tasks")
    overheads = [one["overhead_s"] for one in releases]
    imports_s = {task: run_step(Step("bench.marking", (module,)))["import_s"] for task, module in IMPORTS.items()}
    parts = {part: statistics.median(one["made_of_s"][part] for one in releases) for part in releases[0]["made_of_s"]}
    yield Result(
        name="task_overhead_s",
        value=statistics.median(overheads),
        unit="s",
        goal="",
        met=None,
        n=count,
        spread=(min(overheads), max(overheads)),
        detail={
            "made_of_s": parts,
            "imports_in_the_work_s": imports_s,
            "releases": releases,
            "release_params": QUICK,
            "host": describe_host().to_dict(),
        },
    )


def _release(context: Context, training_run_id: str) -> dict[str, Any]:
    """Return what the release of a training run took, and where it went besides its work."""
    api = AirflowApi(context)
    dag_run_id = Release(api, training_run_id).dag_run_id
    path = f"/dags/{DAG_ID}/dagRuns/{quote(dag_run_id, safe='')}"
    run = api.get(path)
    if run["state"] != "success":
        raise StackError(f"the release {dag_run_id} has ended as {run['state']}")
    rows = {row["task_id"]: row for row in api.get(f"{path}/taskInstances")["task_instances"]}
    times = {
        name: _times(row, api.get(f"{path}/taskInstances/{name}/logs/{row['try_number']}", full_content="true"))
        for name, row in rows.items()
        if row["state"] == "success"
    }
    begun, over = (_seconds(run[field]) for field in ("start_date", "end_date"))
    return summary(begun, over, times)


def summary(begun: float, over: float, times: dict[str, Times]) -> dict[str, Any]:
    """Return a DAG run's wall time, its work, and the rest by its parts, each in seconds a task."""
    count = len(times)
    work_s = {name: one.ends - one.begins for name, one in times.items()}
    parts: defaultdict[str, float] = defaultdict(float)
    former = begun
    for one in sorted(times.values(), key=lambda one: one.started):
        # Two tasks that overlap wait for nothing between them.
        parts["until_scheduled"] += max(0.0, one.scheduled - former)
        parts["until_queued"] += one.queued - one.scheduled
        parts["until_started"] += one.started - one.queued
        parts["process"] += one.entered - one.started
        parts["dag_file_and_arguments"] += one.begins - one.entered
        parts["result_and_end"] += one.ended - one.ends
        former = one.ended
    parts["until_run_ends"] += over - former
    return {
        "wall_s": over - begun,
        "tasks": count,
        "overhead_s": (over - begun - sum(work_s.values())) / count,
        "made_of_s": {part: seconds / count for part, seconds in parts.items()},
        "work_s": work_s,
        "tasks_whose_log_tells": sum(one.begins > one.started for one in times.values()),
    }


def _times(row: dict[str, Any], log: dict[str, Any]) -> Times:
    started, ended = _seconds(row["start_date"]), _seconds(row["end_date"])
    entered, begins, ends = work_of(log["content"], started, ended)
    return Times(
        scheduled=_seconds(row["scheduled_when"]),
        queued=_seconds(row["queued_when"]),
        started=started,
        entered=entered,
        begins=begins,
        ends=ends,
        ended=ended,
    )


def work_of(lines: Sequence[dict[str, Any]], started: float, ended: float) -> tuple[float, float, float]:
    """Return when the task's process began to prepare, when its operator began, and when that ended.

    A log without these lines, as that of a task that was deferred, leaves all of the task's time to the operator.
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
