"""Many small releases that run at the same time, and the watch beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from airflow_onnx.defaults import MEASURE_POOL
from bench import cpu
from bench.figure import progress
from bench.watch import airflow_runs
from bench.watch.training_runs import RELEASE_MAX_S, Watched
from stack.context import Context
from stack.release import DAG_ID

IDLE_S = 10.0
# Training runs without a model end at this interval: each needs a decision of the watch.
LATE_EVERY_S = 10.0
POLL_S = 0.5


class Burst:
    """Releases of training runs that end at the same time on an idle stack."""

    def __init__(self, context: Context, watched: Watched, runs: list[str]) -> None:
        self._context, self._watched, self._runs = context, watched, runs
        self._late_ends: list[float] = []

    def measure(self) -> dict[str, Any]:
        """End the runs, wait for all their releases, and return the delays, the rate and the waits of the watch."""
        idle = cpu.idle_rates(self._context, IDLE_S)
        before, began = cpu.services_s(self._context), time.time()
        delays = self._watched.delays(self._runs)
        self._follow()
        window_s = time.time() - began
        used = cpu.difference(cpu.services_s(self._context), before)
        # A service uses some time without any release.
        used_s = {name: max(0.0, seconds - idle.get(name, 0.0) * window_s) for name, seconds in used.items()}
        rows = self._watched.runs.releases(self._runs)
        measured = list(self._measured(rows))
        wall_s = max(_time(row["end_date"]) for row in rows) - min(_time(row["start_date"]) for row in rows)
        allowed_s = sum(used_s.values()) / cpu.cpus()
        return {
            "delays_s": delays,
            "wall_s": wall_s,
            "rate": allowed_s / wall_s,
            "releases_per_hour": 3600 * len(self._runs) / wall_s,
            "cpu_s": used_s,
            "rate_of_the_tasks_alone": used_s.get("tasks", 0.0) / cpu.cpus() / wall_s,
            "speedups": sorted(batch["speedup"] for batch in measured if batch["conclusive"]),
            # A wide interval, or disturbed rounds: a release reports them as uncertain.
            "inconclusive": [
                {name: batch[name] for name in ("speedup", "speedup_low", "speedup_high")}
                for batch in measured
                if not batch["conclusive"]
            ],
            **self._watch_waits(began),
        }

    def _measured(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the measurement at the serving batch size of each release."""
        for row in rows:
            report = self._watched.runs.api.xcom(DAG_ID, row["dag_run_id"], "parity_latency")
            # A failed release has none.
            if latency := report and report["latency"]:
                size = latency["budget"]["batch_size"]
                yield next(batch for batch in latency["batches"] if batch["batch_size"] == size)

    def _follow(self) -> None:
        """Wait for all releases; meanwhile a run without a model ends now and then."""
        client = self._watched.client
        experiment_id = client.get_run(self._runs[0]).info.experiment_id

        def all_ended() -> bool:
            if time.time() - (self._late_ends or [0.0])[-1] >= LATE_EVERY_S:
                run_id = client.create_run(experiment_id).info.run_id
                self._late_ends.append(time.time())
                client.set_terminated(run_id, end_time=int(1000 * self._late_ends[-1]))
                ended = airflow_runs.ended(self._watched.runs.releases(self._runs))
                progress(f"{ended} of {len(self._runs)} releases have ended")
                return ended == len(self._runs)
            return airflow_runs.ended(self._watched.runs.releases(self._runs)) == len(self._runs)

        airflow_runs.wait_for("a release has not ended", all_ended, RELEASE_MAX_S * 2, poll_s=POLL_S)

    def _watch_waits(self, since: float) -> dict[str, Any]:
        """Return the wait of each task of the watch for its start, and the time from the end of a run to a decision."""
        queued = {row["dag_run_id"]: _time(row["queued_at"]) for row in self._watched.runs.watches()}
        tasks = [task for task in self._watched.runs.watch_tasks() if task["start_date"]]
        starts = {task["dag_run_id"]: _time(task["start_date"]) for task in tasks}
        waits = {run: begin - queued[run] for run, begin in starts.items() if queued[run] >= since}
        parts = {task["dag_run_id"]: _parts(task, queued[task["dag_run_id"]]) for task in tasks}
        # A run that ended last may be decided after the burst.
        decided = [min((begin for begin in starts.values() if begin >= end), default=None) for end in self._late_ends]
        return {
            "watch_waits_s": list(waits.values()),
            "watch_waits_made_of_s": [parts[run] for run in waits],
            "late_runs": len(self._late_ends),
            "end_to_decision_s": [at - end for at, end in zip(decided, self._late_ends, strict=True) if at],
        }


def with_two_slots(context: Context, watched: Watched, runs: list[str]) -> dict[str, Any]:
    """Measure a burst in which a model is compared during the measurement of another one: two measuring slots."""
    pool = {"pool": MEASURE_POOL, "slots": 2, "include_deferred": False}
    watched.runs.api.patch(f"/pools/{MEASURE_POOL}", pool)
    return Burst(context, watched, runs).measure()


def _parts(task: dict[str, Any], created_s: float) -> dict[str, float]:
    """Return the parts of a task's wait in seconds; empty for a task that was scheduled again after a deferral."""
    names = ("until_scheduled", "until_queued", "until_started")
    times = [created_s, *(_time(task[name]) for name in ("scheduled_when", "queued_when", "start_date"))]
    if times != sorted(times):
        return {}
    return {name: end - begin for name, begin, end in zip(names, times, times[1:], strict=False)}


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
