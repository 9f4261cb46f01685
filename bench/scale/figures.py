"""Figures of a deployment's counts: rates, bytes of a release, and hits of the caches."""

from __future__ import annotations

import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from bench.figure import Figure, Result
from bench.scale.counters import Counts, of_each, on_line
from bench.servers import QUICK

WORKERS = (1, 2, 4)
# Number of workers for the large models. Of a small one most bytes are not weights.
LARGE_ON = 2
FIGURES = {
    figure.name: figure
    for figure in (
        *(Figure(f"releases_per_hour_w{workers}", "/h") for workers in WORKERS),
        *(Figure(f"workers_ratio_w{workers}") for workers in WORKERS[1:]),
        Figure("moved_over_artifact", at_most=4.2),
        Figure("cache_hit_rate", ""),
    )
}
HOUR_S = 3600.0
_POSTGRES = ("postgres/", "table/")


def summary(rows: Sequence[dict[str, Any]], tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return wall time and rate of a batch from its DAG runs' records, and the times of their tasks."""
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
        # The measurement pool has one slot: at 1 further workers do not help.
        "measuring_share": sum(seconds.get("parity_latency", [])) / wall_s,
        "tries_again": sum(task["try_number"] > 1 for task in tasks),
    }


def above_idle(batch: dict[str, Any], idle: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return a batch with the cost of each release, and its share of all processors' time."""
    rest = idle_with(batch["workers"], idle)
    each = of_each(batch["seconds"], batch["risen"], rest, batch["releases"])
    own_s = batch["releases"] * added(each, "cpu_s/")
    used_s = own_s + added(rest, "cpu_s/") * batch["wall_s"]
    return batch | {"of_each_release": each, "cpu_share": used_s / (batch["wall_s"] * (os.cpu_count() or 1))}


def idle_with(workers: int, idle: dict[int, dict[str, Any]]) -> Counts:
    """Return the counts per second with idle workers, from two numbers of workers.

    PostgreSQL cleans up some time after a load and writes then; idle workers cost it nothing. Its lesser count of both
    times is used.
    """
    first, last = min(idle), max(idle)
    few, many = idle[first]["rates"], idle[last]["rates"]
    rates = on_line((first, few), (last, many), workers) if first < last else dict(few)
    quieter = {name: min(few.get(name, 0.0), many.get(name, 0.0)) for name in rates if name.startswith(_POSTGRES)}
    return rates | quieter


def added(counts: Counts, prefix: str) -> float:
    """Add up the counts with a prefix."""
    return sum(number for name, number in counts.items() if name.startswith(prefix))


def hit_rate(used: Sequence[Mapping[str, int]], unit: str = "") -> float:
    """Return the share of cache hits in all requests to the workers' caches, by number or (``_bytes``) by size."""
    hits, misses = ("hit_bytes", "miss_bytes") if unit else ("hits", "misses")
    found = sum(one.get(hits, 0) for one in used)
    requests = found + sum(one.get(misses, 0) for one in used)
    return found / requests if requests else 0.0


def results(found: dict[str, Any]) -> Iterator[Result]:
    """Return all figures of the counts of `bench.scale.workers`."""
    common = {"plan": found["plan"], "release_params": QUICK, "images": found["images"]}
    batches = {workers: above_idle(batch, found["idle"]) for workers, batch in found["batches"].items()}
    for workers, batch in batches.items():
        detail = batch | common
        if workers in found["idle"]:
            detail["idle"] = found["idle"][workers]
        figure = FIGURES[f"releases_per_hour_w{workers}"]
        yield figure.result(batch["per_hour"], detail, n=batch["releases"])
    for workers in WORKERS[1:]:
        detail = {name: {w: one[name] for w, one in batches.items()} for name in ("cpu_share", "measuring_share")}
        ratio = batches[workers]["per_hour"] / batches[1]["per_hour"]
        yield FIGURES[f"workers_ratio_w{workers}"].result(ratio, detail | common, n=batches[workers]["releases"])
    large = above_idle(found["large"], found["idle"])
    made_of = bytes_over_artifact(large)
    detail = large | {"made_of": made_of} | common
    yield FIGURES["moved_over_artifact"].result(sum(made_of.values()), detail, n=large["releases"])
    rates = {w: hit_rate(one["cache"]) for w, one in batches.items()}
    detail = {"by_workers": rates, "by_bytes": {w: hit_rate(b["cache"], "_bytes") for w, b in batches.items()}}
    detail |= {"large": hit_rate(large["cache"]), "large_by_bytes": hit_rate(large["cache"], "_bytes")} | common
    each = [hit_rate([one]) for one in batches[LARGE_ON]["cache"]]
    yield FIGURES["cache_hit_rate"].result(rates[LARGE_ON], detail, (min(each), max(each)), n=len(each))


def bytes_over_artifact(batch: dict[str, Any]) -> dict[str, float]:
    """Return the bytes that MinIO received and sent for a release, over the bytes of its artifact."""
    artifact_bytes = batch["artifact_bytes"] / batch["releases"]
    each = batch["of_each_release"]
    return {way: each.get(f"minio/{way}_bytes", 0.0) / artifact_bytes for way in ("received", "sent")}
