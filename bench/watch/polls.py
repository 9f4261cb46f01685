"""The two questions that the watch asks MLflow for ever, timed on servers side by side. Needs Airflow's packages."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from airflow_onnx.dag_runs import State
from airflow_onnx.defaults import WATCH_LOOKBACK_H
from airflow_onnx.hooks.mlflow_rest import AsyncMlflowRest, MlflowRest
from airflow_onnx.hooks.mlflow_server import MlflowServer
from airflow_onnx.watch import summary
from airflow_onnx.watch.decide import Defaults
from airflow_onnx.watch.look import Look
from airflow_onnx.watch.poll import RunPoller
from airflow_onnx.watch.queries import Scope
from bench.watch.stacks import EXPERIMENT

SCOPE = Scope(experiments=(EXPERIMENT,))
WARM_UP_ROUNDS = 3

Times = dict[str, list[list[float]]]
"""Seconds by what was timed, then by server, then by round."""


@dataclass(slots=True)
class Watched:
    """One server with a poller that has returned its new runs already, and the poller's client."""

    server: MlflowServer
    client: AsyncMlflowRest
    poller: RunPoller = field(default_factory=lambda: RunPoller(SCOPE, WATCH_LOOKBACK_H, None))

    async def poll(self) -> int:
        """Poll as the triggerer does every other second; returns the number of new runs."""
        return len(await self.poller.new_runs(self.client))

    async def first_poll(self) -> int:
        """Poll as after a restart without a watermark: experiments are asked for, and the whole lookback."""
        return len(await RunPoller(SCOPE, WATCH_LOOKBACK_H, None).new_runs(self.client))

    async def look(self) -> int:
        """Look as the schedule does, up to its report; Airflow is not asked, and nothing is started."""
        with MlflowRest(self.server) as rest:
            look = Look(rest=rest, scope=SCOPE, defaults=Defaults(), dag_state=lambda _: State.ABSENT)
            planned = list(look.new_runs(WATCH_LOOKBACK_H))
            summary.total_line(summary.as_dict(planned, None))
        return len(planned)


KINDS: dict[str, Callable[[Watched], Awaitable[int]]] = {
    "bell": Watched.poll,
    "bell_first_poll": Watched.first_poll,
    "look": Watched.look,
}


async def measure(urls: Sequence[str], rounds: int, prepare: Sequence[Callable[[], None]], expected: int) -> Times:
    """Time each kind of question at each server, by turns, in alternating order.

    :param prepare: called after the bells have polled once, as their watermark is from before the new runs.
    :param expected: how many new runs a look must find; another number raises `RuntimeError`.
    """
    async with AsyncExitStack() as clients:
        watched = [await _watched(url, clients) for url in urls]
        for one in watched:
            await one.poll()
        for step in prepare:
            step()
        times: Times = {kind: [[] for _ in urls] for kind in KINDS}
        for number in range(WARM_UP_ROUNDS + rounds):
            order = list(enumerate(watched))[:: 1 if number % 2 else -1]
            for kind, ask in KINDS.items():
                for index, one in order:
                    begin = time.perf_counter()
                    found = await ask(one)
                    times[kind][index].append(time.perf_counter() - begin)
                    # A bell rings once for a run: what it finds later is known to it.
                    if kind != "bell" and found != expected:
                        raise RuntimeError(f"{kind} at {one.server.tracking_uri} found {found} runs, not {expected}.")
        return {kind: [side[WARM_UP_ROUNDS:] for side in sides] for kind, sides in times.items()}


async def _watched(url: str, clients: AsyncExitStack) -> Watched:
    server = MlflowServer(conn_id="bench", tracking_uri=url, ui_url=url)
    return Watched(server, await clients.enter_async_context(AsyncMlflowRest(server)))
