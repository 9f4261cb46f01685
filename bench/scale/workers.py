"""Releases per hour with 1, 2 and 4 workers, what they move, and what each asks of every service."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from airflow_onnx.moved import CACHED, COPIED, MOVED_KEY, TRANSFERS, Moved, total
from bench.models import TINY
from bench.results import Result, say
from bench.scale.counters import Counters, Counts, between, of_each, on_line, rates
from bench.scale.deployment import Deployment, deployment
from bench.setting import Setting
from bench.watch.stacks import QUICK
from bench.watch.trainings import train_runs
from onnx_release.host import describe_host
from stack.release import DAG_ID

WORKERS = (1, 2, 4)
# What large models move is counted with so many: of a small one the files beside the weights are the larger part.
LARGE_ON = 2
HELD_EVERY_S = 20.0
HOUR_S = 3600.0


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
    found = gather(setting, plan)
    yield from results(found, plan)


def gather(setting: Setting, plan: Plan) -> dict[str, Any]:
    """Return what was counted: by number of workers, for the large models, and with nothing to do."""
    with deployment(setting.folder) as deployed:
        small = train_runs(deployed.context, range(1 + plan.releases * len(WORKERS)))
        large = train_runs(deployed.context, range(plan.large), size=setting.models.size(TINY))
        say(f"{len(small)} small and {len(large)} large models are in MLflow")
        scene = Scene(deployed)
        # The first release finds cold disks, and makes what all later ones find there.
        scene.warm_up(small[0])
        found: dict[str, Any] = {"idle": {1: scene.idle(plan.idle_s)}, "batches": {}}
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
            "moved": [self._moved(row["dag_run_id"]) for row in rows],
            "held_max": dict(held),
        }
        say(
            f"{self._workers} workers: {len(runs)} releases in {found['wall_s']:.0f} s, {found['per_hour']:.0f} an hour"
        )
        return found

    def _release(self, runs: Sequence[str], look: Any) -> list[dict[str, Any]]:
        self._number += 1
        self._deployed.end_in_the_past(runs, self._number)
        return self._deployed.release(runs, self._number, look)

    def _moved(self, dag_run_id: str) -> dict[str, int]:
        api = self._deployed.runs.api
        names = ("export", "check", "parity_latency", "upload", "register", "promote")
        counted = total(api.xcom(DAG_ID, dag_run_id, name, MOVED_KEY) for name in names)
        artifact = api.xcom(DAG_ID, dag_run_id, "export")
        return dict(counted) | {"artifact_bytes": artifact["size_bytes"]}


def summary(rows: Sequence[dict[str, Any]], tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch's wall time and rate by its DAG runs' records, and what their tasks took."""
    begun, over = (
        [datetime.fromisoformat(row[name]).timestamp() for row in rows] for name in ("start_date", "end_date")
    )
    wall_s = max(over) - min(begun)
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for task in tasks:
        if task["duration"] is not None:
            seconds[task["task_id"]].append(task["duration"])
    return {
        "releases": len(rows),
        "wall_s": wall_s,
        "per_hour": HOUR_S * len(rows) / wall_s,
        "task_s": {name: statistics.fmean(each) for name, each in seconds.items()},
        "tasks_by_host": dict(Counter(task["hostname"] for task in tasks if task["hostname"])),
        # The pool for measuring has one slot: at 1 no further worker helps.
        "measuring_share": sum(seconds.get("parity_latency", [])) / wall_s,
        "tries_again": sum(task["try_number"] > 1 for task in tasks),
    }


def above_idle(batch: dict[str, Any], idle: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return a batch with what each of its releases cost, and the part of all processors' time that went into it."""
    few, many = ((workers, one["rates"]) for workers, one in (min(idle.items()), max(idle.items())))
    rest = on_line(few, many, batch["workers"]) if few[0] < many[0] else few[1]
    each = of_each(batch["seconds"], batch["risen"], rest, batch["releases"])
    own_s = batch["releases"] * added(each, "cpu_s/")
    used_s = own_s + added(rest, "cpu_s/") * batch["wall_s"]
    return batch | {"of_each_release": each, "cpu_share": used_s / (batch["wall_s"] * (os.cpu_count() or 1))}


def added(counts: Counts, prefix: str) -> float:
    """Add up the counts whose names begin so."""
    return sum(number for name, number in counts.items() if name.startswith(prefix))


def moved_over_artifact(moved: dict[str, int]) -> float:
    """Return all bytes that crossed the network for a release, over its artifact's."""
    return sum(moved.get(name, 0) for name in TRANSFERS) / moved["artifact_bytes"]


def hit_rate(moved: dict[str, int], unit: str = "") -> float:
    """Return how much of what was asked of the workers' caches was there, by count or (``_bytes``) by size."""
    hits, misses = (f"cache_hit{unit}", f"cache_miss{unit}") if unit else ("cache_hits", "cache_misses")
    asked = moved.get(hits, 0) + moved.get(misses, 0)
    return moved.get(hits, 0) / asked if asked else 0.0


def results(found: dict[str, Any], plan: Plan) -> Iterator[Result]:
    """Turn what was gathered into figures."""
    common = {
        "plan": asdict(plan),
        "release_params": QUICK,
        "images": found["images"],
        "host": describe_host().to_dict(),
    }
    batches = {workers: above_idle(batch, found["idle"]) for workers, batch in found["batches"].items()}
    for workers, batch in batches.items():
        detail = batch | common
        if workers in found["idle"]:
            detail["idle"] = found["idle"][workers]
        yield _result(f"releases_per_hour_w{workers}", [batch["per_hour"]], "/h", len(batch["moved"]), detail)
    for workers in WORKERS[1:]:
        detail = {"cpu_share": {w: one["cpu_share"] for w, one in batches.items()}}
        detail |= {"measuring_share": {w: one["measuring_share"] for w, one in batches.items()}, **common}
        ratio = batches[workers]["per_hour"] / batches[1]["per_hour"]
        yield _result(f"workers_ratio_w{workers}", [ratio], "x", batches[workers]["releases"], detail)
    large = above_idle(found["large"], found["idle"])
    each = [moved_over_artifact(one) for one in large["moved"]]
    yield _result("moved_over_artifact", each, "x", len(each), large | {"made_of": made_of(large["moved"])} | common)
    rates = {w: hit_rate(_sum(one["moved"])) for w, one in batches.items()}
    detail = {"by_workers": rates, "by_bytes": {w: hit_rate(_sum(b["moved"]), "_bytes") for w, b in batches.items()}}
    detail |= {"large": hit_rate(_sum(large["moved"])), "large_by_bytes": hit_rate(_sum(large["moved"]), "_bytes")}
    each = [hit_rate(one) for one in batches[LARGE_ON]["moved"]]
    yield _result("cache_hit_rate", each, "", len(each), detail | common, rates[LARGE_ON])


def made_of(moved: Sequence[dict[str, int]]) -> dict[str, float]:
    """Return the bytes by partner and direction, and the store's own copies, over those of the artifacts."""
    whole = _sum(moved)
    return {name: whole[name] / whole["artifact_bytes"] for name in (*TRANSFERS, COPIED, *CACHED[2:]) if whole[name]}


def _sum(moved: Sequence[dict[str, int]]) -> Moved:
    whole = Moved()
    for one in moved:
        whole.update(one)
    return whole


def _result(
    name: str, each: Sequence[float], unit: str, n: int, detail: dict[str, Any], value: float | None = None
) -> Result:
    return Result(
        name=name,
        value=statistics.median(each) if value is None else value,
        unit=unit,
        goal="",
        met=None,
        n=n,
        spread=(min(each), max(each)),
        detail=detail,
    )
