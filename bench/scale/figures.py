"""What a deployment's counts come to as figures: rates, what a release moved, what a cache spared."""

from __future__ import annotations

import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from bench.results import Result
from bench.scale.counters import Counts, of_each, on_line
from bench.watch.stacks import QUICK
from onnx_release.latency.host import describe_host

WORKERS = (1, 2, 4)
# What large models move is counted with so many: of a small one the files beside the weights are the larger part.
LARGE_ON = 2
HOUR_S = 3600.0
_POSTGRES = ("postgres/", "table/")


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
    rest = idle_with(batch["workers"], idle)
    each = of_each(batch["seconds"], batch["risen"], rest, batch["releases"])
    own_s = batch["releases"] * added(each, "cpu_s/")
    used_s = own_s + added(rest, "cpu_s/") * batch["wall_s"]
    return batch | {"of_each_release": each, "cpu_share": used_s / (batch["wall_s"] * (os.cpu_count() or 1))}


def idle_with(workers: int, idle: dict[int, dict[str, Any]]) -> Counts:
    """Return what happens a second with so many workers that have nothing to do, from two numbers of them.

    PostgreSQL cleans up after a load when it sees fit, and grows and writes then; it does nothing for idle workers. So
    the quieter of both times is its idleness.
    """
    first, last = min(idle), max(idle)
    few, many = idle[first]["rates"], idle[last]["rates"]
    rates = on_line((first, few), (last, many), workers) if first < last else dict(few)
    quieter = {name: min(few.get(name, 0.0), many.get(name, 0.0)) for name in rates if name.startswith(_POSTGRES)}
    return rates | quieter


def added(counts: Counts, prefix: str) -> float:
    """Add up the counts whose names begin so."""
    return sum(number for name, number in counts.items() if name.startswith(prefix))


def hit_rate(used: Sequence[Mapping[str, int]], unit: str = "") -> float:
    """Return the share of cache hits in all requests to the workers' caches, by number or (``_bytes``) by size."""
    hits, misses = ("hit_bytes", "miss_bytes") if unit else ("hits", "misses")
    found = sum(one.get(hits, 0) for one in used)
    requests = found + sum(one.get(misses, 0) for one in used)
    return found / requests if requests else 0.0


def results(found: dict[str, Any]) -> Iterator[Result]:
    """Turn what `bench.scale.workers.gather` returned into figures."""
    common = {
        "plan": found["plan"],
        "release_params": QUICK,
        "images": found["images"],
        "host": describe_host().to_dict(),
    }
    batches = {workers: above_idle(batch, found["idle"]) for workers, batch in found["batches"].items()}
    for workers, batch in batches.items():
        detail = batch | common
        if workers in found["idle"]:
            detail["idle"] = found["idle"][workers]
        yield _result(f"releases_per_hour_w{workers}", [batch["per_hour"]], "/h", batch["releases"], detail)
    for workers in WORKERS[1:]:
        detail = {"cpu_share": {w: one["cpu_share"] for w, one in batches.items()}}
        detail |= {"measuring_share": {w: one["measuring_share"] for w, one in batches.items()}, **common}
        ratio = batches[workers]["per_hour"] / batches[1]["per_hour"]
        yield _result(f"workers_ratio_w{workers}", [ratio], "x", batches[workers]["releases"], detail)
    large = above_idle(found["large"], found["idle"])
    made_of = bytes_over_artifact(large)
    moved = made_of["received"] + made_of["sent"]
    yield _result("moved_over_artifact", [moved], "x", large["releases"], large | {"made_of": made_of} | common)
    rates = {w: hit_rate(one["cache"]) for w, one in batches.items()}
    detail = {"by_workers": rates, "by_bytes": {w: hit_rate(b["cache"], "_bytes") for w, b in batches.items()}}
    detail |= {"large": hit_rate(large["cache"]), "large_by_bytes": hit_rate(large["cache"], "_bytes")}
    each = [hit_rate([one]) for one in batches[LARGE_ON]["cache"]]
    yield _result("cache_hit_rate", each, "", len(each), detail | common, rates[LARGE_ON])


def bytes_over_artifact(batch: dict[str, Any]) -> dict[str, float]:
    """Return the bytes that MinIO received and sent for a release, over the bytes of its artifact."""
    artifact_bytes = batch["artifact_bytes"] / batch["releases"]
    each = batch["of_each_release"]
    return {way: each.get(f"minio/{way}_bytes", 0.0) / artifact_bytes for way in ("received", "sent")}


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
