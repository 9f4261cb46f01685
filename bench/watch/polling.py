"""Whether a poll costs more in a store with a hundred times as many old runs."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from bench.results import Result, say
from bench.setting import Setting
from bench.watch.stacks import environment, mlflow_servers
from bench.watch.stores import SPAN_H, Store
from onnx_release.latency.statistics import Interval, ratio_of_medians

GOAL = 1.5
FEW, MANY = 100, 10_000
NEW = (0, 5)
JUDGED = ("bell", "look")
USUAL = "100_days"


ROUNDS, ROUNDS_IN_FULL = 20, 40


def measure(setting: Setting) -> Iterator[Result]:
    """`poll_ratio`, by fewer rounds unless the bench runs in full."""
    rounds = 2 if setting.models.rehearsal else ROUNDS_IN_FULL if setting.full else ROUNDS
    yield poll_ratio(FEW, 200 if setting.models.rehearsal else MANY, rounds)


def poll_ratio(few: int, many: int, rounds: int) -> Result:
    """Wall time of a poll and of a look with `many` finished runs in the store, over that with `few`.

    The figure is the worst of both, without and with new runs, where the old runs' ends are spread over 100 days. The
    detail also has them all within the lookback.
    """
    detail: dict[str, Any] = {"old_runs": [few, many], "new_runs": NEW, "lookback_h": 24.0, "rounds": rounds}
    intervals: dict[str, Interval] = {}
    # Importing Airflow writes its configuration into this folder.
    with (
        mlflow_servers(2) as servers,
        tempfile.TemporaryDirectory(prefix="bench-") as home,
        environment(AIRFLOW_HOME=home),
    ):
        stores = [Store(server) for server in servers]
        begin = time.monotonic()
        for store, count in zip(stores, (few, many), strict=True):
            store.fill(count)
        say(f"{few} and {many} old runs inserted in {time.monotonic() - begin:.0f} s")
        for spread in SPAN_H:
            detail[spread] = {}
            for new in NEW:
                rows, found = _compare(stores, spread, new, rounds)
                detail[spread][f"{new}_new"] = rows
                intervals |= {f"{spread}/{new}_new/{kind}": interval for kind, interval in found.items()}
    judged = {name: interval for name, interval in intervals.items() if name.split("/")[2] in JUDGED}
    worst = max((name for name in judged if name.startswith(USUAL)), key=lambda name: judged[name].value)
    detail["value_of"] = worst
    detail["over_goal"] = sorted(name for name, interval in intervals.items() if interval.value > GOAL)
    return Result(
        name="poll_ratio",
        value=judged[worst].value,
        unit="x",
        goal=f"<= {GOAL:g}",
        met=judged[worst].value <= GOAL,
        n=rounds,
        spread=(judged[worst].low, judged[worst].high),
        detail=detail,
    )


def _compare(stores: list[Store], spread: str, new: int, rounds: int) -> tuple[dict[str, Any], dict[str, Interval]]:
    from bench.watch import polls  # loads Airflow, which must find its folder set

    for store in stores:
        store.set_new(0)
        store.spread(SPAN_H[spread])
    urls = [store.context.mlflow_url for store in stores]
    times = asyncio.run(polls.measure(urls, rounds, [partial(store.set_new, new) for store in stores], new))
    rows, intervals = {}, {}
    for kind, (few, many) in times.items():
        sides = [np.array(side, dtype=np.float64)[:, None] for side in (many, few)]
        interval = ratio_of_medians(sides[0], sides[1], resamples=2000).interval(0.95)
        ms = [round(1000 * statistics.median(side), 2) for side in (few, many)]
        rows[kind] = {"few_ms": ms[0], "many_ms": ms[1], "ratio": interval.value, "low": interval.low}
        rows[kind]["high"] = interval.high
        intervals[kind] = interval
        say(f"{spread}, {new} new, {kind}: {ms[0]} ms and {ms[1]} ms, {interval.value:.2f}x")
    return rows, intervals
