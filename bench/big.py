"""A model of more than 2 GiB, which no protocol buffer holds, released from its weights to its version."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.results import Result, say
from bench.watch.stacks import EXPERIMENT, embedded_stack
from onnx_release.host import describe_host
from stack import children
from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.environment import clean_environment
from stack.errors import StackError
from stack.layout import REPO
from stack.release import Release
from stack.setup import client_environment

GOAL = 1.3
SIZE = "huge"
_STEPS = ("export", "check", "compare")


def big_model() -> Result:
    """Peak memory of the export over the model's bytes, each step in a process of its own; then the whole release.

    What counts is the highest resident memory above that of the imports. Pages of the mapped file count as long as
    they are resident, though the kernel could drop them at any time.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        weights = Path(folder, "weights.safetensors")
        made = _child("make", folder)
        size_bytes = weights.stat().st_size
        say(f"{size_bytes / 1e9:.2f} GB of weights made in {made['wall_s']:.0f} s")
        steps = {}
        for step in _STEPS:
            steps[step] = _child(step, folder)
            steps[step]["peak_over_model"] = steps[step]["peak_bytes"] / size_bytes
            say(f"{step}: {steps[step]['wall_s']:.0f} s, peak {steps[step]['peak_over_model']:.2f} times the model")
        released = _release(folder)
    value = steps["export"]["peak_over_model"]
    worst = max(steps[step]["peak_over_model"] for step in ("export", "check"))
    whole = steps["compare"]["passed"] and steps["check"]["passed"] and released["state"] == "success"
    return Result(
        name="big_model",
        value=value,
        unit="x",
        goal=f"<= {GOAL:g}",
        met=worst <= GOAL and whole,
        n=1,
        spread=(value, value),
        detail={"weights_bytes": size_bytes, "steps": steps, "release": released, "host": describe_host().to_dict()},
    )


def _child(step: str, folder: str, context: Context | None = None) -> dict[str, Any]:
    path = ":".join(str(REPO / name) for name in ("include", "plugins", "."))
    client = client_environment(context) if context else {}
    env = clean_environment(**client, PYTHONPATH=path, MLFLOW_DISABLE_TELEMETRY="true")
    status, output = children.run([sys.executable, "-m", "bench.big_steps", step, folder], env, Path(folder))
    if status != 0:
        raise StackError(f"the step {step} of the big model ended with status {status}:\n{output[-2000:]}")
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def _release(folder: str) -> dict[str, Any]:
    """Log the weights as a training run that says what makes its model, and let the watch release it."""
    with embedded_stack() as context:
        run_id = _child("log", folder, context)["run_id"]
        say("the run has ended; its release begins")
        release = Release(AirflowApi(context), run_id)
        release.await_dags()
        release.await_begin(lambda: None)
        with _timed() as wall_s:
            succeeded = release.follow(lambda _: None, lambda: None)
        if not succeeded:
            return {"state": "failed", "failure": release.failure()}
        outcome = release.outcome()
        return {
            "state": release.state(),
            "wall_s": wall_s[0],
            "task_s": {task.name: task.seconds for task in release.tasks()},
            "version": outcome.version["version"] if outcome else None,
            "artifact_bytes": outcome.artifact["size_bytes"] if outcome else None,
        }


@contextmanager
def _timed() -> Iterator[list[float]]:
    began, wall_s = time.perf_counter(), [0.0]
    yield wall_s
    wall_s[0] = time.perf_counter() - began


FACTORY = "examples.localization:LocalizationNet"
FACTORY_KWARGS = {"size": SIZE}
INPUT_SPEC = [{"name": "mel_spectrogram", "dtype": "float32", "shape": ["batch", 3, 128, 32], "low": -3, "high": 3}]
OF_EXPERIMENT = EXPERIMENT
