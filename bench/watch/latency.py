"""How long after the end of a training run its release begins."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import mlflow
from croniter import croniter  # type: ignore[import-untyped]

from airflow_onnx.defaults import WATCH_CRON, WATCH_POLL_S
from bench.results import Result, say
from bench.setting import Setting
from bench.watch import airflow_runs
from bench.watch.airflow_runs import AirflowRuns
from bench.watch.stacks import QUICK, embedded_stack
from bench.watch.trainings import train_runs
from onnx_release.latency.host import describe_host
from stack.context import Context

GOAL_S = 10.0
RELEASE_MAX_S = 600.0
# After a burst: what would start a run twice has had its time by then.
SETTLE_S = 30.0


# How many runs end one after the other, and then how many at once: by default, and where the bench runs in full.
USUAL, FULL = (5, 8), (12, 20)


def measure(setting: Setting) -> Iterator[Result]:
    """`run_to_release_s`, of fewer runs unless the bench runs in full."""
    singles, burst = (1, 2) if setting.models.rehearsal else FULL if setting.full else USUAL
    yield run_to_release_s(singles, burst)


def run_to_release_s(singles: int, burst: int) -> Result:
    """From the end of a training run, by its client's clock, to the start of its DAG run of `release_onnx`.

    Runs end one after the other, each on an idle stack; then many within one second. A first run, not counted, makes
    sure that the bell has been hung up.
    """
    with embedded_stack() as context:
        scene = Scene(context)
        first, *alone = train_runs(context, range(1 + singles))
        together = train_runs(context, range(1 + singles, 1 + singles + burst))
        first_s = scene.delays([first])[0]
        scene.rest([first])
        alone_s = []
        for run in alone:
            alone_s += scene.delays([run])
            scene.rest([run])
        burst_s = scene.delays(together)
        time.sleep(SETTLE_S)
        detail = {
            "singles": singles,
            "burst": burst,
            "in_full": list(FULL),
            "first_s": first_s,
            "singles_s": alone_s,
            "burst_s": burst_s,
            "burst_max_s": max(burst_s),
        }
        detail |= {"burst_median_s": statistics.median(burst_s)} | scene.facts([first, *alone, *together])
    return _result(alone_s, burst_s, detail)


def _result(alone_s: list[float], burst_s: list[float], detail: dict[str, Any]) -> Result:
    value, latest = statistics.median(alone_s), max(*alone_s, *burst_s, detail["first_s"])
    interval_s = cron_interval_s()
    return Result(
        name="run_to_release_s",
        value=value,
        unit="s",
        goal=f"<= {GOAL_S:g} median, all <= {interval_s:g}",
        met=value <= GOAL_S and latest <= interval_s and detail["each_started_once"],
        n=len(alone_s),
        spread=(min(alone_s), max(alone_s)),
        detail=detail | {"cron_interval_s": interval_s, "poll_interval_s": WATCH_POLL_S, "release_params": QUICK},
    )


class Scene:
    """A running stack, its MLflow and its Airflow."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._runs = AirflowRuns(context)
        self._runs.await_dags()

    @cached_property
    def _client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self._context.mlflow_url, self._context.mlflow_url)

    def delays(self, runs: list[str]) -> list[float]:
        """End the runs at once and return after how many seconds the release of each was started."""
        ended_s = {}
        for run in runs:
            ended_s[run] = time.time()
            self._client.set_terminated(run, end_time=int(1000 * ended_s[run]))
        found: dict[str, float] = {}

        def all_started() -> bool:
            begun = {row["conf"]["training_run_id"]: row for row in self._runs.releases(runs)}
            found.update({run: s for run, row in begun.items() if (s := airflow_runs.started_at_s(row)) is not None})
            return len(found) == len(runs)

        airflow_runs.wait_for("not every release was started", all_started, 2 * RELEASE_MAX_S)
        delays = [found[run] - ended_s[run] for run in runs]
        took_s = max(ended_s.values()) - min(ended_s.values())
        say(f"{len(runs)} ended within {took_s:.1f} s; started after {min(delays):.1f} to {max(delays):.1f} s")
        return delays

    def rest(self, runs: list[str]) -> None:
        """Wait until the releases have ended, so that the next run finds an idle stack."""

        def idle() -> bool:
            return airflow_runs.ended(self._runs.releases(runs)) == len(runs)

        airflow_runs.wait_for("a release has not ended", idle, RELEASE_MAX_S)

    def facts(self, runs: list[str]) -> dict[str, Any]:
        """Return how often each run was started, and what else an expert asks."""
        rows = self._runs.releases(runs)
        count = Counter(row["conf"]["training_run_id"] for row in rows)
        return {
            "each_started_once": all(count[run] == 1 for run in runs),
            "dag_runs": len(rows),
            "dag_run_states": airflow_runs.states(rows),
            "watch_training_runs": dict(Counter(row["run_type"] for row in self._runs.watches())),
            "host": describe_host().to_dict(),
        }


def cron_interval_s() -> float:
    """Return the time between two looks of the schedule."""
    times = croniter(WATCH_CRON, datetime(2026, 1, 1, tzinfo=UTC))
    first, second = times.get_next(datetime), times.get_next(datetime)
    return float((second - first).total_seconds())
