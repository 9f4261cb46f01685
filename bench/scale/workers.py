"""Releases per hour with 1, 2 and 4 workers, what they move, and what each asks of every service."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.models import TINY
from bench.results import NotMeasured, Result, say
from bench.scale.access_logs import cache_use
from bench.scale.counters import Counters, between, rates
from bench.scale.deployment import Deployment, deployment
from bench.scale.figures import LARGE_ON, WORKERS, results, summary
from bench.setting import Setting
from bench.watch.trainings import train_runs
from stack.release import DAG_ID

HELD_EVERY_S = 20.0
# The tasks that fetch through a worker's cache.
CACHED_TASKS = ("export", "tune", "check", "parity_latency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many releases of small models each number of workers gets, how many of large ones, and how long is idle."""

    releases: int
    large: int
    idle_s: float


USUAL, FULL, REHEARSAL = (
    Plan(releases=4, large=2, idle_s=20.0),
    Plan(releases=16, large=4, idle_s=120.0),
    Plan(releases=1, large=1, idle_s=5.0),
)


def measure(setting: Setting) -> Iterator[Result]:
    """Every figure of this part, from one deployment; see `bench.scale.deployment` for when it is not measured."""
    plan = REHEARSAL if setting.models.rehearsal else FULL if setting.full else USUAL
    yield from results(gather(setting, plan))


def gather(setting: Setting, plan: Plan) -> dict[str, Any]:
    """Return what was counted: by number of workers, for the large models, and with nothing to do."""
    with deployment(setting.folder) as deployed:
        small = train_runs(deployed.context, range(1 + plan.releases * len(WORKERS)))
        large = train_runs(deployed.context, range(plan.large), size=setting.models.size(TINY))
        say(f"{len(small)} small and {len(large)} large models are in MLflow")
        scene = Scene(deployed)
        # The first release finds cold disks, and makes what all later ones find there.
        scene.warm_up(small[0])
        found: dict[str, Any] = {"plan": asdict(plan), "idle": {1: scene.idle(plan.idle_s)}, "batches": {}}
        for place, workers in enumerate(WORKERS):
            scene.scale(workers)
            batch = small[1 + place * plan.releases :][: plan.releases]
            found["batches"][workers] = scene.batch(batch)
            if workers == LARGE_ON:
                found["large"] = scene.batch(large)
        found["idle"][WORKERS[-1]] = scene.idle(plan.idle_s)
        found["images"] = scene.counters.images()
    return found


class Scene:
    """A deployment whose releases are counted."""

    def __init__(self, deployed: Deployment) -> None:
        self._deployed = deployed
        self._number = 0
        self._workers = 1
        self.counters = Counters(deployed)

    def scale(self, workers: int) -> None:
        """Have so many workers."""
        if workers != self._workers:
            self._deployed.scale(workers)
            self.counters = Counters(self._deployed)
        self._workers = workers

    def warm_up(self, run: str) -> None:
        """Release one run, and count nothing."""
        self._release([run], lambda: None)

    def idle(self, seconds: float) -> dict[str, Any]:
        """Return what happens a second, and who is connected, with nothing to do."""
        before = self.counters.settled()
        time.sleep(seconds)
        after = self.counters.snapshot()
        return {
            "seconds": seconds,
            "workers": self._workers,
            "rates": rates(before, after),
            "held": self.counters.held(),
        }

    def batch(self, runs: Sequence[str]) -> dict[str, Any]:
        """Release the runs, and return what that took, and by how much every counter rose meanwhile."""
        held: Counter[str] = Counter()
        looked_at = time.monotonic()

        def look() -> None:
            nonlocal looked_at, held
            if time.monotonic() - looked_at > HELD_EVERY_S:
                held |= Counter(self.counters.held())
                looked_at = time.monotonic()

        before = self.counters.snapshot()
        rows = self._release(runs, look)
        after = self.counters.settled()
        ids = {row["dag_run_id"] for row in rows}
        tasks = [task for task in self._deployed.runs.release_tasks() if task["dag_run_id"] in ids]
        seconds, risen = between(before, after)
        found = summary(rows, tasks) | {
            "workers": self._workers,
            "seconds": seconds,
            "risen": risen,
            "artifact_bytes": sum(self._artifact_bytes(row["dag_run_id"]) for row in rows),
            "cache": [self._cache_use(row["dag_run_id"], tasks) for row in rows],
            "held_max": dict(held),
        }
        say(
            f"{self._workers} workers: {len(runs)} releases in {found['wall_s']:.0f} s, {found['per_hour']:.0f} an hour"
        )
        return found

    def _release(self, runs: Sequence[str], look: Callable[[], None]) -> list[dict[str, Any]]:
        self._number += 1
        self._deployed.end_in_the_past(runs, self._number)
        return self._deployed.release(runs, self._number, look)

    def _artifact_bytes(self, dag_run_id: str) -> int:
        return int(self._deployed.runs.api.xcom(DAG_ID, dag_run_id, "export")["size_bytes"])

    def _cache_use(self, dag_run_id: str, tasks: Sequence[dict[str, Any]]) -> dict[str, int]:
        """Return hits and misses of a release, by number and by bytes, from the logs of its tasks."""
        used: Counter[str] = Counter()
        for task in tasks:
            if task["dag_run_id"] == dag_run_id and task["task_id"] in CACHED_TASKS and task["state"] == "success":
                used.update(cache_use(self._deployed.runs.log(task)))
        if not used:
            raise NotMeasured(f"The task logs of {dag_run_id} have no line about the worker's cache.")
        return dict(used)
