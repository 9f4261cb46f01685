"""A day of the watch's trigger in minutes: it polls without pauses, and its clock is moved after each poll.

``python -m soak.watch_day MLFLOW_URL EXPERIMENT POLLS`` prints the result as JSON. Its process does nothing else.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from airflow_onnx.defaults import WATCH_LOOKBACK_H, WATCH_POLL_S
from airflow_onnx.hooks.mlflow_rest import AsyncMlflowRest
from airflow_onnx.hooks.mlflow_server import MlflowServer
from airflow_onnx.watch.poll import RunPoller
from onnx_release.training_runs.queries import Scope
from soak.rig import IMPORTS
from stack.context import Context
from stack.errors import StackError
from stack.layout import REPO

# Time between two polls. All polls of a day would take MLflow's server seven minutes or more.
_STEP_S = 3 * WATCH_POLL_S
# The first polls fill caches.
_WARM_UP_SHARE = 0.1
# A leak of one object for each poll would be thousands of them.
_GROWN_MAX = {"objects": 200, "files": 0}


def measure(context: Context, experiment: str, polls: int) -> dict[str, Any]:
    """Return memory, objects and open files of a process after the first tenth of the polls and after the last one."""
    argv = [sys.executable, "-m", "soak.watch_day", context.mlflow_url, experiment, str(polls)]
    done = subprocess.run(argv, cwd=REPO, env=os.environ | IMPORTS, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"The polls of the watch failed:\n{done.stderr[-1000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def leaks(found: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each kind of object of which more were left at the end than after the first polls."""
    for name, most in _GROWN_MAX.items():
        if (grown := found["after"][name] - found["before"][name]) > most:
            yield f"{grown} more {name} after {found['polls']} polls"


def main(mlflow_url: str, experiment: str, polls: int) -> dict[str, Any]:
    """Poll in this process."""
    server = MlflowServer(conn_id="load", tracking_uri=mlflow_url, ui_url=mlflow_url)
    began = time.monotonic()
    before, after = asyncio.run(_poll(server, experiment, polls))
    return {
        "polls": polls,
        "simulated_h": round(polls * _STEP_S / 3600, 2),
        "wall_s": round(time.monotonic() - began, 1),
        "before": before,
        "after": after,
    }


async def _poll(server: MlflowServer, experiment: str, polls: int) -> tuple[dict[str, int], dict[str, int]]:
    clock, before = itertools.count(time.time(), _STEP_S), _held()
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


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
