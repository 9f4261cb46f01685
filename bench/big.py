"""A model of more than 2 GiB, which no protocol buffer holds, released from its weights to its version."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.models import HUGE
from bench.results import Result, say
from bench.setting import Setting
from bench.sides import Step, highest_of, run_step
from bench.watch.stacks import embedded_stack
from onnx_release.latency.host import describe_host
from stack.airflow_api import AirflowApi
from stack.release import Release
from stack.setup import client_environment

GOAL = 1.3
_STEPS = ("export", "check", "compare")


def measure(setting: Setting) -> Iterator[Result]:
    """`big_model`: peak of the export over the model's bytes; then the whole release, which must end in a version.

    The goal holds for the check too. See `bench.marking` for what counts as a peak.
    """
    size, weights = setting.models.size(HUGE), setting.models.weights(HUGE)
    size_bytes = weights.stat().st_size
    steps = _steps(size, weights, setting.folder / "big")
    released = _release(size, weights)
    value = steps["export"]["peak_over_model"]
    worst = max(steps[step]["peak_over_model"] for step in ("export", "check"))
    yield Result(
        name="big_model",
        value=value,
        unit="x",
        goal=f"<= {GOAL:g}, released",
        met=worst <= GOAL and released["state"] == "success",
        n=1,
        spread=(value, value),
        detail={"weights_bytes": size_bytes, "steps": steps, "release": released, "host": describe_host().to_dict()},
    )


def _steps(size: str, weights: Path, folder: Path) -> dict[str, dict[str, Any]]:
    folder.mkdir()
    steps = {}
    for step in _STEPS:
        found = run_step(Step("bench.release_steps", (step, size, str(weights), str(folder))))
        found["peak_over_model"] = highest_of(found) / weights.stat().st_size
        say(f"{step}: {found['wall_s']:.0f} s, peak {found['peak_over_model']:.2f} times the model")
        steps[step] = found
    return steps


def _release(size: str, weights: Path) -> dict[str, Any]:
    """Log the weights as a training run does, and let the watch release it."""
    with embedded_stack() as context:
        logged = run_step(Step("bench.log_weights", (size, str(weights)), client_environment(context)))
        say("the run has ended; its release begins")
        release = Release(AirflowApi(context), logged["run_id"])
        release.await_dags()
        release.await_begin(lambda: None)
        began = time.perf_counter()
        succeeded = release.follow(lambda _: None, lambda: None)
        wall_s = time.perf_counter() - began
        if not succeeded:
            return {"state": "failed", "failure": release.failure()}
        outcome = release.outcome()
        return {
            "state": release.state(),
            "wall_s": wall_s,
            "task_s": {task.name: task.seconds for task in release.tasks()},
            "version": outcome.version["version"] if outcome else None,
            "artifact_bytes": outcome.artifact["size_bytes"] if outcome else None,
        }
