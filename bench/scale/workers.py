"""Releases per hour with 1, 2 and 4 workers, their bytes, and their cost in every service."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.figure import NotMeasured, Result, Setting, part, progress
from bench.models import TINY
from bench.scale.access_logs import cache_use
from bench.scale.counters import Counters, between, rates
from bench.scale.deployment import Deployment, deployment
from bench.scale.figures import FIGURES, LARGE_ON, WORKERS, results, summary
from bench.watch.training_runs import train_runs
from stack.release import DAG_ID

CONNECTIONS_EVERY_S = 20.0
# Tasks that fetch through a worker's cache.
CACHED_TASKS = ("export", "tune", "check", "parity_latency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Number of small models per number of workers, number of large ones, and duration of the idle measurement."""

    releases: int
    large: int
    idle_s: float


USUAL, FULL, REHEARSAL = (
    Plan(releases=4, large=2, idle_s=20.0),
    Plan(releases=16, large=4, idle_s=120.0),
    Plan(releases=1, large=1, idle_s=5.0),
)


@part("workers", 11, *FIGURES.values())
def measure(setting: Setting) -> Iterator[Result]:
    """Measure all figures with one deployment; see `bench.scale.deployment` for its requirements."""
    plan = setting.choose(USUAL, FULL, REHEARSAL)
    with deployment(setting.folder) as deployed:
        small = train_runs(deployed.context, range(1 + plan.releases * len(WORKERS)))
        large = train_runs(deployed.context, range(plan.large), size=setting.models.size(TINY))
        progress(f"{len(small)} small and {len(large)} large models are in MLflow")
        counted = Counted(deployed)
        # The first release fills caches of disks and servers for all later ones.
        counted.warm_up(small[0])
        found: dict[str, Any] = {"plan": asdict(plan), "idle": {1: counted.idle(plan.idle_s)}, "batches": {}}
        for place, workers in enumerate(WORKERS):
            counted.scale(workers)
            batch = small[1 + place * plan.releases :][: plan.releases]
            found["batches"][workers] = counted.batch(batch)
            if workers == LARGE_ON:
                found["large"] = counted.batch(large)
        found["idle"][WORKERS[-1]] = counted.idle(plan.idle_s)
        found["images"] = counted.counters.images()
    yield from results(found)


class Counted:
    """Deployment with counters of its releases."""

    def __init__(self, deployed: Deployment) -> None:
        self._deployed = deployed
        self._number = 0
        self._workers = 1
        self.counters = Counters(deployed)

    def scale(self, workers: int) -> None:
        """Change the number of workers."""
        if workers != self._workers:
            self._deployed.scale(workers)
            self.counters = Counters(self._deployed)
        self._workers = workers

    def warm_up(self, run: str) -> None:
        """Release one run without counting."""
        self._release([run], lambda: None)

    def idle(self, seconds: float) -> dict[str, Any]:
        """Return the counts per second and the connections of an idle deployment."""
        before = self.counters.settled()
        time.sleep(seconds)
        after = self.counters.snapshot()
        return {
            "seconds": seconds,
            "workers": self._workers,
            "rates": rates(before, after),
            "connections": self.counters.connections(),
        }

    def batch(self, runs: Sequence[str]) -> dict[str, Any]:
        """Release the runs; return their times and the increase of every counter."""
        connections: Counter[str] = Counter()
        read_at = time.monotonic()

        def read() -> None:
            nonlocal read_at, connections
            if time.monotonic() - read_at > CONNECTIONS_EVERY_S:
                connections |= Counter(self.counters.connections())
                read_at = time.monotonic()

        before = self.counters.snapshot()
        rows = self._release(runs, read)
        after = self.counters.settled()
        ids = {row["dag_run_id"] for row in rows}
        tasks = [task for task in self._deployed.runs.release_tasks() if task["dag_run_id"] in ids]
        seconds, risen = between(before, after)
        artifacts = [self._deployed.runs.api.xcom(DAG_ID, row["dag_run_id"], "export") for row in rows]
        found = summary(rows, tasks) | {
            "workers": self._workers,
            "seconds": seconds,
            "risen": risen,
            "artifact_bytes": sum(int(artifact["size_bytes"]) for artifact in artifacts),
            "cache": [self._cache_use(row["dag_run_id"], tasks) for row in rows],
            "connections_max": dict(connections),
        }
        rate = f"{found['per_hour']:.0f} an hour"
        progress(f"{self._workers} workers: {len(runs)} releases in {found['wall_s']:.0f} s, {rate}")
        return found

    def _release(self, runs: Sequence[str], read: Callable[[], None]) -> list[dict[str, Any]]:
        self._number += 1
        self._deployed.end_in_the_past(runs, self._number)
        return self._deployed.release(runs, self._number, read)

    def _cache_use(self, dag_run_id: str, tasks: Sequence[dict[str, Any]]) -> dict[str, int]:
        """Return hits and misses of a release, by number and by bytes, from the logs of its tasks."""
        used: Counter[str] = Counter()
        for task in tasks:
            if task["dag_run_id"] == dag_run_id and task["task_id"] in CACHED_TASKS and task["state"] == "success":
                used.update(cache_use(self._deployed.runs.log(task)))
        if not used:
            raise NotMeasured(f"The task logs of {dag_run_id} have no line about the worker's cache.")
        return dict(used)
