"""Cost of a backfill beside its releases, with a scheduler that is killed half-way."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_onnx.defaults import WATCH_POOL
from bench.figure import Figure, Result, Setting, part, progress
from bench.servers import MODEL_NAME, QUICK, embedded_stack
from bench.watch import airflow_runs
from bench.watch.training_runs import Watched, train_runs
from stack import airflow, children, lifecycle, processes
from stack.console import make_error_console
from stack.context import Context
from stack.errors import StackError
from stack.layout import tool
from stack.release import WATCH_DAG_ID
from stack.setup import client_environment

BACKFILL = Figure("backfill_ratio", at_most=1.3)
SCHEDULER = "airflow-scheduler"
INTERVAL = timedelta(minutes=10)
DAYS_AGO = 3
RELEASE_MAX_S = 120.0
PROGRESS_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Number of old runs over intervals of the watch's schedule, and the parameters of the backfill."""

    intervals: int = 12
    runs_each: int = 5
    max_active_runs: int = 4
    at_once: int = 5

    @property
    def runs(self) -> int:
        """Number of all runs."""
        return self.intervals * self.runs_each


# Sixty releases take most of an hour. With fewer the recovery is a larger part, and the ratio is worse.
USUAL, FULL, REHEARSAL = Plan(intervals=4, runs_each=4), Plan(), Plan(intervals=2, runs_each=1)


@part("backfill", 9, BACKFILL)
def measure(setting: Setting) -> Iterator[Result]:
    """Measure wall time of a backfill over that of its releases' tasks with every worker slot busy.

    The scheduler is killed half-way with all its tasks and started again; the wall time includes the recovery. A second
    backfill of the range must make nothing new.
    """
    plan = setting.choose(USUAL, FULL, REHEARSAL)
    with embedded_stack() as context:
        history = History(context, plan)
        begin = time.monotonic()
        history.backfill()
        history.await_releases(share=0.5)
        killed_s = time.monotonic() - begin
        history.kill_and_restart()
        history.await_releases(share=1.0)
        history.await_backfills(1)
        wall_s = time.monotonic() - begin
        detail = history.outcome() | {"wall_s": wall_s, "scheduler_killed_after_s": killed_s, "kills": 1}
        detail["second_backfill"] = history.again()
    detail |= {"plan": asdict(plan), "plan_in_full": asdict(FULL), "release_params": QUICK}
    counts = {detail[name] for name in ("released", "dag_runs", "versions", "runs_with_one_version")}
    whole = counts == {plan.runs} and detail["second_backfill"]["new"] == 0
    yield BACKFILL.result(wall_s / (detail["tasks_s"] / detail["slots"]), detail, condition=whole)


class History:
    """Stack whose MLflow contains runs that ended days ago and were never handled, evenly over the intervals."""

    def __init__(self, context: Context, plan: Plan) -> None:
        self._context, self._plan = context, plan
        watched = Watched(context)
        self._airflow, self._client = watched.runs, watched.client
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        self._begin = midnight - timedelta(days=DAYS_AGO)
        self._runs = train_runs(context, range(plan.runs))
        for number, run in enumerate(self._runs):
            interval, place = divmod(number, plan.runs_each)
            ended_at = self._begin + INTERVAL * (interval + (place + 0.5) / plan.runs_each)
            self._client.set_terminated(run, end_time=int(1000 * ended_at.timestamp()))
        progress(f"{len(self._runs)} old runs made")

    def backfill(self, *more: str) -> None:
        """Start a backfill of the range with Airflow's command line, as an operator does."""
        # The last interval begins at the end of the range; one second less leaves it out.
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
        """Kill the scheduler with its tasks, as the kernel does when memory is short, and start it again."""
        record = processes.find(self._context.layout, SCHEDULER)
        if record is None:
            raise StackError(f"{SCHEDULER} ended before the measurement killed it: see {self._context.layout.logs}.")
        os.killpg(record.pid, signal.SIGKILL)
        # Until the process has ended, the stack would count as up.
        airflow_runs.wait_for(f"{SCHEDULER} survives SIGKILL", lambda: not record.is_alive(), 30.0, poll_s=0.1)
        progress("scheduler killed")
        lifecycle.up(self._context.layout, make_error_console())

    def await_releases(self, share: float) -> None:
        """Wait until this share of the releases has ended, with a line of progress now and then."""
        printed_at = 0.0

        def enough() -> bool:
            nonlocal printed_at
            rows = self._airflow.releases(self._runs)
            if time.monotonic() - printed_at > PROGRESS_S:
                printed_at = time.monotonic()
                progress(f"{airflow_runs.ended(rows)} of {len(self._runs)} ended; {airflow_runs.states(rows)}")
            return airflow_runs.ended(rows) >= share * len(self._runs)

        limit_s = RELEASE_MAX_S * len(self._runs)
        airflow_runs.wait_for("not every release has ended", enough, limit_s, poll_s=2.0)

    def await_backfills(self, count: int) -> None:
        """Wait until this number of backfills is complete."""

        def completed() -> bool:
            return sum(bool(row["completed_at"]) for row in self._airflow.backfills()) == count

        airflow_runs.wait_for("the backfill is not complete", completed, 300.0)

    def again(self) -> dict[str, Any]:
        """Backfill the range a second time; return the number of new DAG runs and versions, which should be 0."""
        before = len(self._airflow.releases(self._runs)) + len(self._versions())
        begin = time.monotonic()
        self.backfill("--reprocess-behavior", "completed")
        self.await_backfills(2)
        new = len(self._airflow.releases(self._runs)) + len(self._versions()) - before
        return {"new": new, "wall_s": time.monotonic() - begin, "totals": self._totals()}

    def outcome(self) -> dict[str, Any]:
        """Return the state of all runs and the time of their tasks."""
        rows = self._airflow.releases(self._runs)
        tasks, watch_tasks = self._airflow.release_tasks(), self._airflow.watch_tasks()
        versions = Counter(self._versions())
        seconds: defaultdict[str, float] = defaultdict(float)
        for task in tasks:
            seconds[task["task_id"]] += task["duration"] or 0.0
        last = max(datetime.fromisoformat(row["end_date"]) for row in rows)
        completed = max(datetime.fromisoformat(row["completed_at"]) for row in self._airflow.backfills())
        statuses = [self._client.get_run(run).data.tags.get("onnx_release.status") for run in self._runs]
        return {
            "released": statuses.count("released"),
            "dag_runs": len(rows),
            "dag_run_states": airflow_runs.states(rows),
            "versions": versions.total(),
            "runs_with_one_version": sum(versions[run] == 1 for run in self._runs),
            "slots": self._slots(),
            "tasks_s": sum(seconds.values()),
            "tasks_s_by_task": {name: round(value, 1) for name, value in seconds.items()},
            "tasks_tried_again": sum(task["try_number"] > 1 for task in tasks),
            "watch_tasks": len(watch_tasks),
            # Nearly all of this is waiting in the triggerer, which uses no worker.
            "watch_tasks_with_waiting_s": sum(task["duration"] or 0.0 for task in watch_tasks),
            "after_last_release_s": (completed - last).total_seconds(),
            "totals": self._totals(),
        }

    def _totals(self) -> dict[str, int]:
        """Return the sums of the reports of the backfill's DAG runs."""
        total: Counter[str] = Counter()
        for row in self._airflow.watches("backfill"):
            report = self._airflow.summary(row["dag_run_id"])
            total.update(report.get("totals", {}))
            total["started"] += report.get("started", 0)
        return dict(total)

    def _versions(self) -> list[str]:
        """Return the training run of each version of the registered model."""
        found = self._client.search_model_versions(f"name='{MODEL_NAME}'", max_results=1000)
        return [str(version.run_id) for version in found]

    def _slots(self) -> int:
        """Return the number of tasks of releases that may run at the same time, by their pools."""
        pools = self._airflow.api.get("/pools")["pools"]
        return sum(pool["slots"] for pool in pools if pool["name"] != WATCH_POOL)
