"""A day of the watch's trigger in minutes: it polls without pauses, and its clock is moved by the interval."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from airflow_onnx.defaults import WATCH_LOOKBACK_H, WATCH_POLL_S
from airflow_onnx.hooks.mlflow_rest import AsyncMlflowRest
from airflow_onnx.hooks.mlflow_server import MlflowServer
from airflow_onnx.watch.poll import RunPoller
from onnx_release.training_runs.queries import Scope
from stack.context import Context

# The first polls fill caches.
_WARM_UP_SHARE = 0.1


def measure(context: Context, experiment: str, polls: int) -> dict[str, Any]:
    """Return the growth of memory, objects and open files between the first tenth of the polls and the last one."""
    server = MlflowServer(conn_id="load", tracking_uri=context.mlflow_url, ui_url=context.mlflow_url)
    began = time.monotonic()
    before, after = asyncio.run(_poll(server, experiment, polls))
    return {
        "polls": polls,
        "simulated_h": round(polls * WATCH_POLL_S / 3600, 2),
        "wall_s": round(time.monotonic() - began, 1),
        "before": before,
        "after": after,
    }


async def _poll(server: MlflowServer, experiment: str, polls: int) -> tuple[dict[str, int], dict[str, int]]:
    clock, before = itertools.count(time.time(), WATCH_POLL_S), _held()
    scope = Scope(experiments=(experiment,))
    poller = RunPoller(scope, WATCH_LOOKBACK_H, None, clock=lambda: next(clock))
    async with AsyncMlflowRest(server) as rest:
        for number in range(polls):
            await poller.new_runs(rest)
            if number == int(polls * _WARM_UP_SHARE):
                before = _held()
        return before, _held()


def _held() -> dict[str, int]:
    gc.collect()
    return {
        "rss_kb": psutil.Process().memory_info().rss // 1024,
        "objects": len(gc.get_objects()),
        "files": len(list(Path("/proc/self/fd").iterdir())),
    }
