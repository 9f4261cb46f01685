"""Cost of the watch's queries in a store with a hundred times as many old runs."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.figure import Figure, Result, Setting, part, progress
from bench.servers import EXPERIMENT, MODEL_NAME, environment, mlflow_servers
from bench.watch.stores import SPAN_H, Store
from onnx_release.latency.statistics import Interval, ratio_of_medians
from stack.mlflow_server import sqlite_store

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow_rest import AsyncMlflowRest
    from airflow_onnx.hooks.mlflow_server import MlflowServer
    from airflow_onnx.watch.poll import RunPoller

POLL = Figure("poll_ratio", at_most=1.5)
FEW, MANY, MANY_REHEARSED = 100, 10_000, 200
NEW = (0, 5)
# Queries and spread of the old runs that the figure is taken from.
COUNTED, USUAL = ("poll", "look"), "100_days"
ROUNDS, ROUNDS_IN_FULL, WARM_UP_ROUNDS = 20, 40, 3


@part("poll", 5, POLL)
def measure(setting: Setting) -> Iterator[Result]:
    """Measure wall time of a poll and of a scheduled search with many finished runs, over that with few.

    The figure is the largest of both ratios, without and with new runs, with the ends of old runs over 100 days. The
    detail also has them all within the lookback.
    """
    few, many = FEW, setting.choose(MANY, MANY, MANY_REHEARSED)
    rounds = setting.choose(ROUNDS, ROUNDS_IN_FULL, 2)
    detail: dict[str, Any] = {"old_runs": [few, many], "new_runs": NEW, "lookback_h": 24.0, "rounds": rounds}
    intervals: dict[str, Interval] = {}
    # Importing Airflow writes its configuration into this folder.
    with (
        mlflow_servers(2) as servers,
        tempfile.TemporaryDirectory(prefix="bench-") as home,
        environment(AIRFLOW_HOME=home),
    ):
        stores = [Store(server, sqlite_store(server)) for server in servers]
        begin = time.monotonic()
        for store, count in zip(stores, (few, many), strict=True):
            store.fill(count)
        progress(f"{few} and {many} old runs inserted in {time.monotonic() - begin:.0f} s")
        for spread in SPAN_H:
            detail[spread] = {}
            for new in NEW:
                rows, found = _compare(stores, spread, new, rounds)
                detail[spread][f"{new}_new"] = rows
                intervals |= {f"{spread}/{new}_new/{query}": interval for query, interval in found.items()}
    counted = [name for name in intervals if name.startswith(USUAL) and name.split("/")[2] in COUNTED]
    worst = max(counted, key=lambda name: intervals[name].value)
    detail["value_of"] = worst
    detail["over_goal"] = sorted(
        name for name, one in intervals.items() if POLL.at_most is not None and one.value > POLL.at_most
    )
    interval = intervals[worst]
    yield POLL.result(interval.value, detail, (interval.low, interval.high), n=rounds)


def _compare(stores: list[Store], spread: str, new: int, rounds: int) -> tuple[dict[str, Any], dict[str, Interval]]:
    for store in stores:
        store.set_new(0)
        store.spread(SPAN_H[spread])
    urls = [store.context.mlflow_url for store in stores]
    times = asyncio.run(_time_queries(urls, rounds, [partial(store.set_new, new) for store in stores], new))
    rows, intervals = {}, {}
    for query, (few, many) in times.items():
        sides = [np.array(side, dtype=np.float64)[:, None] for side in (many, few)]
        interval = ratio_of_medians(sides[0], sides[1]).interval(0.95)
        few_ms, many_ms = (round(1000 * statistics.median(side), 2) for side in (few, many))
        rows[query] = {"few_ms": few_ms, "many_ms": many_ms, "ratio": interval.value}
        rows[query] |= {"low": interval.low, "high": interval.high}
        intervals[query] = interval
        progress(f"{spread}, {new} new, {query}: {few_ms} ms and {many_ms} ms, {interval.value:.2f}x")
    return rows, intervals


async def _time_queries(
    urls: Sequence[str], rounds: int, prepare: Sequence[Callable[[], None]], expected: int
) -> dict[str, list[list[float]]]:
    """Time each query at each server in interleaved rounds; return seconds by query, server and round.

    Args:
        urls: The servers.
        rounds: Number of counted rounds.
        prepare: Called after the first poll of each server, whose watermark precedes the new runs.
        expected: Number of new runs; another number raises `RuntimeError`.
    """
    async with AsyncExitStack() as clients:
        watched = [await _watched(url, clients) for url in urls]
        for one in watched:
            await one.poll()
        for step in prepare:
            step()
        queries: dict[str, Callable[[_Watched], Awaitable[int]]] = {
            "poll": _Watched.poll,
            "first_poll": _Watched.first_poll,
            "look": _Watched.look,
        }
        times: dict[str, list[list[float]]] = {query: [[] for _ in urls] for query in queries}
        for number in range(WARM_UP_ROUNDS + rounds):
            order = list(enumerate(watched))[:: 1 if number % 2 else -1]
            for query, call in queries.items():
                for index, one in order:
                    begin = time.perf_counter()
                    found = await call(one)
                    times[query][index].append(time.perf_counter() - begin)
                    # A poller returns each run once only.
                    if query != "poll" and found != expected:
                        raise RuntimeError(f"{query} at {one.server.tracking_uri} found {found} runs, not {expected}.")
        return {query: [side[WARM_UP_ROUNDS:] for side in sides] for query, sides in times.items()}


@dataclass(slots=True)
class _Watched:
    """Server with a poller that has returned its new runs already. Imports Airflow, whose folder must be set."""

    server: MlflowServer
    client: AsyncMlflowRest
    poller: RunPoller

    async def poll(self) -> int:
        """Poll as the triggerer does every other second; return the number of new runs."""
        return len(await self.poller.new_runs(self.client))

    async def first_poll(self) -> int:
        """Poll the whole lookback, as after a restart without a watermark."""
        return len(await _poller().new_runs(self.client))

    async def look(self) -> int:
        """Search as the schedule does, up to its report; no release is started."""
        from airflow_onnx.dag_runs import State
        from airflow_onnx.defaults import WATCH_LOOKBACK_H
        from airflow_onnx.hooks.mlflow_rest import MlflowRest
        from airflow_onnx.watch.decide import Decider
        from airflow_onnx.watch.routes import read_routes
        from onnx_release.training_runs import summary
        from onnx_release.training_runs.queries import Scope

        with MlflowRest(self.server) as rest:
            scope = Scope(experiments=(EXPERIMENT,))
            routes = read_routes([{"experiment": "*", "dag_id": "release", "params": {"model_name": MODEL_NAME}}])
            decider = Decider(
                rest=rest,
                scope=scope,
                routes=routes,
                dag_state=lambda *_: State.ABSENT,
                absent=lambda _, dag_run_ids: dag_run_ids,
            )
            decisions = list(decider.new_runs(WATCH_LOOKBACK_H))
            summary.total_line(summary.to_dict(decisions))
        return len(decisions)


def _poller() -> RunPoller:
    from airflow_onnx.defaults import WATCH_LOOKBACK_H
    from airflow_onnx.watch.poll import RunPoller
    from onnx_release.training_runs.queries import Scope

    return RunPoller(Scope(experiments=(EXPERIMENT,)), WATCH_LOOKBACK_H, None)


async def _watched(url: str, clients: AsyncExitStack) -> _Watched:
    from airflow_onnx.hooks.mlflow_rest import AsyncMlflowRest
    from airflow_onnx.hooks.mlflow_server import MlflowServer

    server = MlflowServer(conn_id="bench", tracking_uri=url, ui_url=url)
    return _Watched(server, await clients.enter_async_context(AsyncMlflowRest(server)), _poller())
