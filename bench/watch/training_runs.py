"""Training runs of a measurement, and the watch's releases of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import mlflow

from bench.figure import progress
from bench.sides import Step
from bench.watch import airflow_runs
from bench.watch.airflow_runs import AirflowRuns
from stack.context import Context
from stack.setup import client_environment

RELEASE_MAX_S = 600.0


def train_runs(context: Context, seeds: Sequence[int], *, size: str = "") -> list[str]:
    """Log a model per seed, of a reference model's size if one is named; return the ids of the RUNNING runs."""
    step = Step("bench.watch.training_steps:log_models", (size, *map(str, seeds)), client_environment(context))
    return list(step.run()["run_ids"])


class Watched:
    """Running stack with its MLflow and its Airflow."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.runs = AirflowRuns(context)
        self.runs.await_dags()

    @cached_property
    def client(self) -> mlflow.MlflowClient:
        """MLflow's client."""
        return mlflow.MlflowClient(self._context.mlflow_url, self._context.mlflow_url)

    def delays(self, runs: list[str]) -> list[float]:
        """End the runs at the same time and return the seconds until the start of each release."""
        ended_s = {}
        for run in runs:
            ended_s[run] = time.time()
            self.client.set_terminated(run, end_time=int(1000 * ended_s[run]))
        started_s: dict[str, float] = {}

        def all_started() -> bool:
            for row in self.runs.releases(runs):
                if (at_s := airflow_runs.started_at_s(row)) is not None:
                    started_s[row["conf"]["training_run_id"]] = at_s
            return len(started_s) == len(runs)

        airflow_runs.wait_for("not every release was started", all_started, 2 * RELEASE_MAX_S)
        delays = [started_s[run] - ended_s[run] for run in runs]
        took_s = max(ended_s.values()) - min(ended_s.values())
        progress(f"{len(runs)} ended within {took_s:.1f} s; started after {min(delays):.1f} to {max(delays):.1f} s")
        return delays

    def await_releases(self, runs: list[str]) -> None:
        """Wait for the end of the releases: the next run must start on an idle stack."""

        def idle() -> bool:
            return airflow_runs.ended(self.runs.releases(runs)) == len(runs)

        airflow_runs.wait_for("a release has not ended", idle, RELEASE_MAX_S)

    def facts(self, runs: list[str]) -> dict[str, Any]:
        """Return the number of starts of each run, and the states of all DAG runs."""
        rows = self.runs.releases(runs)
        count = Counter(row["conf"]["training_run_id"] for row in rows)
        return {
            "each_started_once": all(count[run] == 1 for run in runs),
            "dag_runs": len(rows),
            "dag_run_states": airflow_runs.states(rows),
            "watch_training_runs": dict(Counter(row["run_type"] for row in self.runs.watches())),
        }
