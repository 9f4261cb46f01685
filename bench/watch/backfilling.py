"""What a backfill costs beside the releases themselves, though the scheduler is killed half-way."""

from __future__ import annotations

import configparser
import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import mlflow

from airflow_onnx.defaults import MODEL_NAME
from bench.results import Result, say
from bench.setting import Setting
from bench.watch import airflow_runs
from bench.watch.airflow_runs import AirflowRuns
from bench.watch.stacks import QUICK, embedded_stack
from bench.watch.trainings import train_runs
from onnx_release.latency.host import describe_host
from stack import airflow, children, lifecycle, processes
from stack.console import make_error_console
from stack.context import Context
from stack.errors import StackError
from stack.layout import tool
from stack.release import WATCH_DAG_ID
from stack.setup import client_environment

GOAL = 2.0
SCHEDULER = "airflow-scheduler"
INTERVAL = timedelta(minutes=10)
DAYS_AGO = 3
RELEASE_MAX_S = 120.0
PROGRESS_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Old runs over so many intervals of the watch's schedule, and how the backfill is asked for."""

    intervals: int = 12
    runs_each: int = 5
    max_active_runs: int = 4
    at_once: int = 5

    @property
    def runs(self) -> int:
        """How many there are in all."""
        return self.intervals * self.runs_each


# Sixty releases take the better part of an hour. Of fewer the recovery is a larger part: the ratio is the worse for it.
USUAL = Plan(intervals=4, runs_each=4)
FULL = Plan()


def measure(setting: Setting) -> Iterator[Result]:
    """`backfill_ratio`, of 16 old runs, or of 60 where the bench runs in full."""
    rehearsal = Plan(intervals=2, runs_each=1)
    yield backfill_ratio(rehearsal if setting.models.rehearsal else FULL if setting.full else USUAL)


def backfill_ratio(plan: Plan) -> Result:
    """Wall time of a backfill over what its releases' tasks would take if every worker slot were always busy.

    Half-way the scheduler is killed with all its tasks, and started again: the wall time includes the recovery. Then
    the range is backfilled a second time, which must make nothing new.
    """
    with embedded_stack() as context:
        history = History(context, plan)
        runs = history.make()
        begin = time.monotonic()
        history.backfill()
        history.await_releases(runs, share=0.5)
        killed_s = time.monotonic() - begin
        history.kill_and_restart()
        history.await_releases(runs, share=1.0)
        history.await_backfills(1)
        wall_s = time.monotonic() - begin
        detail = history.outcome(runs) | {"wall_s": wall_s, "scheduler_killed_after_s": killed_s, "kills": 1}
        detail["second_backfill"] = history.again(runs)
    return _result(plan, detail)


def _result(plan: Plan, detail: dict[str, Any]) -> Result:
    value = detail["wall_s"] / (detail["tasks_s"] / detail["slots"])
    whole = detail["released"] == detail["dag_runs"] == detail["versions"] == detail["runs_with_one_version"]
    whole = whole and detail["released"] == plan.runs and detail["second_backfill"]["new"] == 0
    return Result(
        name="backfill_ratio",
        value=value,
        unit="x",
        goal=f"<= {GOAL:g}",
        met=value <= GOAL and whole,
        n=1,
        spread=(value, value),
        detail=detail
        | {
            "plan": asdict(plan),
            "plan_in_full": asdict(FULL),
            "release_params": QUICK,
            "host": describe_host().to_dict(),
        },
    )


class History:
    """A stack whose MLflow holds runs that ended days ago and were never looked at."""

    def __init__(self, context: Context, plan: Plan) -> None:
        self._context = context
        self._plan = plan
        self._runs = AirflowRuns(context)
        self._runs.await_dags()
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        self._begin = midnight - timedelta(days=DAYS_AGO)

    @cached_property
    def _client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self._context.mlflow_url, self._context.mlflow_url)

    def make(self) -> list[str]:
        """Train the models, and end their runs in the past: evenly over the intervals."""
        runs = train_runs(self._context, range(self._plan.runs))
        for number, run in enumerate(runs):
            interval, place = divmod(number, self._plan.runs_each)
            ended_at = self._begin + INTERVAL * (interval + (place + 0.5) / self._plan.runs_each)
            self._client.set_terminated(run, end_time=int(1000 * ended_at.timestamp()))
        say(f"{len(runs)} old runs made")
        return runs

    def backfill(self, *more: str) -> None:
        """Ask for the range on Airflow's command line, as an operator does."""
        # The last interval begins at the end of the range: one second earlier leaves out the one after it.
        until = self._begin + INTERVAL * self._plan.intervals - timedelta(seconds=1)
        argv = [tool("airflow"), "backfill", "create", "--dag-id", WATCH_DAG_ID, *more]
        argv += ["--from-date", self._begin.isoformat(), "--to-date", until.isoformat()]
        argv += ["--max-active-runs", str(self._plan.max_active_runs)]
        argv += ["--dag-run-conf", json.dumps({"at_once": self._plan.at_once})]
        env = airflow.environment(self._context) | client_environment(self._context)
        status, output = children.run(argv, env, self._context.layout.home)
        if status != 0:
            raise StackError(f"`airflow backfill create` failed (status {status}):\n{output[-2000:]}")

    def kill_and_restart(self) -> None:
        """End the scheduler as the kernel does when memory is short, with the tasks that it runs, and start it."""
        record = processes.find(self._context.layout, SCHEDULER)
        if record is None:
            raise StackError(f"{SCHEDULER} has ended before it was to be killed: see {self._context.layout.logs}.")
        os.killpg(record.pid, signal.SIGKILL)
        # It ends a moment later; until then the stack would count as up.
        airflow_runs.wait_for(f"{SCHEDULER} outlives SIGKILL", lambda: not record.is_alive(), 30.0, poll_s=0.1)
        say("scheduler killed")
        lifecycle.up(self._context.layout, make_error_console())

    def await_releases(self, runs: list[str], share: float) -> None:
        """Wait until this share of the runs has been released or refused, and say now and then how far it is."""
        said_at = 0.0

        def enough() -> bool:
            nonlocal said_at
            rows = self._runs.releases(runs)
            if time.monotonic() - said_at > PROGRESS_S:
                said_at = time.monotonic()
                say(f"{airflow_runs.ended(rows)} of {len(runs)} ended; {airflow_runs.states(rows)}")
            return airflow_runs.ended(rows) >= share * len(runs)

        airflow_runs.wait_for("not every release has ended", enough, RELEASE_MAX_S * len(runs), poll_s=2.0)

    def await_backfills(self, count: int) -> None:
        """Wait until so many backfills have been completed."""

        def completed() -> bool:
            return sum(bool(row["completed_at"]) for row in self._runs.backfills()) == count

        airflow_runs.wait_for("the backfill has not been completed", completed, 300.0)

    def again(self, runs: list[str]) -> dict[str, Any]:
        """Backfill the range once more; returns what that made, which is nothing if all is well."""
        before, versions = self._runs.releases(runs), self._versions()
        begin = time.monotonic()
        self.backfill("--reprocess-behavior", "completed")
        self.await_backfills(2)
        new = len(self._runs.releases(runs)) - len(before) + len(self._versions()) - len(versions)
        return {"new": new, "wall_s": time.monotonic() - begin, "totals": self._totals()}

    def outcome(self, runs: list[str]) -> dict[str, Any]:
        """Return what became of the runs, and what the tasks took."""
        rows, tasks, own = self._runs.releases(runs), self._runs.release_tasks(), self._runs.watch_tasks()
        versions = Counter(self._versions())
        seconds: defaultdict[str, float] = defaultdict(float)
        for task in tasks:
            seconds[task["task_id"]] += task["duration"] or 0.0
        return {
            "released": sum(self._status(run) == "released" for run in runs),
            "dag_runs": len(rows),
            "dag_run_states": airflow_runs.states(rows),
            "versions": versions.total(),
            "runs_with_one_version": sum(versions[run] == 1 for run in runs),
            "slots": self._slots(),
            "tasks_s": sum(seconds.values()),
            "tasks_s_by_task": {name: round(value, 1) for name, value in seconds.items()},
            "tasks_tried_again": sum(task["try_number"] > 1 for task in tasks),
            "watch_tasks": len(own),
            # From the first start to the end: nearly all of it is waiting in the triggerer, which holds no worker.
            "watch_tasks_with_waiting_s": sum(task["duration"] or 0.0 for task in own),
            "after_last_release_s": self._tail_s(rows),
            "totals": self._totals(),
        }

    def _totals(self) -> dict[str, int]:
        """Add up what the backfill's DAG runs reported at their ends."""
        total: Counter[str] = Counter()
        for row in self._runs.watches("backfill"):
            report = self._runs.summary(row["dag_run_id"])
            total.update(report.get("totals", {}))
            total["started"] += report.get("started", 0)
        return dict(total)

    def _tail_s(self, rows: list[dict[str, Any]]) -> float:
        """Return how long after the last release the backfill was completed."""
        last = max(datetime.fromisoformat(row["end_date"]) for row in rows)
        done = max(datetime.fromisoformat(row["completed_at"]) for row in self._runs.backfills())
        return (done - last).total_seconds()

    def _status(self, run: str) -> str:
        return str(self._client.get_run(run).data.tags.get("onnx_release.status", ""))

    def _versions(self) -> list[str]:
        """Return the training run of each version of the registered model."""
        found = self._client.search_model_versions(f"name='{MODEL_NAME}'", max_results=1000)
        return [str(version.run_id) for version in found]

    def _slots(self) -> int:
        """Return how many tasks the stack's executor runs at once."""
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(self._context.layout.airflow_home / "airflow.cfg")
        return parser.getint("core", "parallelism")
