"""How fast the shipped model is beside PyTorch, and how far the measuring of it can be trusted."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.models import LARGE, TINY
from bench.release_steps import ARTIFACT
from bench.results import NotMeasured, Result, say
from bench.setting import Setting
from bench.sides import Step, run_step
from onnx_release.latency.host import describe_host
from onnx_release.limits import MODEL_FILE

GOALS = {1: 1.5, 8: 1.1, 32: 1.0}
COMPILE_GOAL = 1.2
REPEATS, SPREAD_GOAL, COVERED_SHARE = 10, 0.15, 0.9
# A rehearsal shows that it works, not how fast.
_REHEARSAL_S = 1.0


def fp32(setting: Setting) -> Iterator[Result]:
    """`speedup_fp32_SIZE_bN`: ONNX Runtime against eager PyTorch, both with every CPU, measured as a release does."""
    for name in (TINY, LARGE):
        for batch, goal in GOALS.items():
            found = latency(setting, "fp32", name, batch, goal)
            yield speedup(f"speedup_fp32_{name}_b{batch}", found, goal)


def compiled(setting: Setting) -> Iterator[Result]:
    """`vs_compile_SIZE_b1`: ONNX Runtime against what torch.compile makes of the model, which needs a C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise NotMeasured(f"torch.compile needs a C++ compiler and {compiler!r} is not there: install g++ or set CXX")
    for name in (TINY, LARGE):
        # An empty cache: what it compiled for an earlier measurement is not what a user waits for.
        with tempfile.TemporaryDirectory(prefix="bench-") as cache:
            env = {"TORCHINDUCTOR_CACHE_DIR": cache}
            found = latency(setting, "compile", name, 1, COMPILE_GOAL, env)
        compile_s = found["ready_s"]
        say(f"compiled in {compile_s:.0f} s")
        yield speedup(f"vs_compile_{name}_b1", found, COMPILE_GOAL, {"compile_s": compile_s})


def own(setting: Setting) -> Iterator[Result]:
    """`speedup_self_*` and `speedup_pt2_reference`: one thing against itself must come out at 1 within the interval."""
    names = {"onnxruntime": "speedup_self_onnxruntime", "torch": "speedup_self_torch", "pt2": "speedup_pt2_reference"}
    for pair, name in names.items():
        found = latency(setting, pair, TINY, 1)
        low, high = _interval(found)
        yield _result(name, found, "1 within interval", low <= 1.0 <= high)


def repeatability(setting: Setting) -> Iterator[Result]:
    """`speedup_repeatability`: how far fresh processes' speedups of one artifact lie apart, (p90 - p10) / median.

    The interval that each states must also hold the median of all of them, but for one in ten.
    """
    repeats = 2 if setting.models.rehearsal else REPEATS
    found = [latency(setting, "fp32", TINY, 1, GOALS[1]) for _ in range(repeats)]
    speedups = [float(one["latency"]["speedup"]) for one in found]
    median = statistics.median(speedups)
    low, high = (float(edge) for edge in np.quantile(speedups, (0.1, 0.9)))
    covered = sum(a <= median <= b for a, b in map(_interval, found))
    value = (high - low) / median
    yield Result(
        name="speedup_repeatability",
        value=value,
        unit="",
        goal=f"<= {SPREAD_GOAL:g}, {math.ceil(COVERED_SHARE * repeats)}/{repeats} cover",
        met=value <= SPREAD_GOAL and covered >= COVERED_SHARE * repeats,
        n=repeats,
        spread=(min(speedups), max(speedups)),
        detail={
            "spread_is": "the least and the largest speedup",
            "median_speedup": median,
            "intervals_that_hold_the_median": covered,
            "latencies": [one["latency"] for one in found],
            "host": describe_host().to_dict(),
        },
    )


def latency(
    setting: Setting,
    pair: str,
    name: str,
    batch: int,
    limit: float | None = None,
    env: dict[str, str] | None = None,
    onnx: Path | None = None,
) -> dict[str, Any]:
    """Time a pair of `bench.latency_steps` in a fresh process; `onnx` is another file than the plain export's."""
    onnx = onnx or setting.models.exported(name) / ARTIFACT / MODEL_FILE
    longest_s = str(_REHEARSAL_S) if setting.models.rehearsal else ""
    arguments = (pair, setting.models.size(name), str(batch), str(onnx), str(limit or ""), longest_s)
    found = run_step(Step("bench.latency_steps", arguments, env or {}))
    timed = found["latency"]
    sides = " and ".join(f"{timed[side]['p50_ms']:.2f} ms" for side in ("reference", "candidate"))
    disturbed = f", {timed['rounds_disturbed']} more disturbed" if timed["rounds_disturbed"] else ""
    say(f"{pair} {name} batch {batch}: {sides}, {timed['rounds']} rounds{disturbed}")
    return found


def _interval(found: dict[str, Any]) -> tuple[float, float]:
    return float(found["latency"]["speedup_low"]), float(found["latency"]["speedup_high"])


def speedup(
    name: str, found: dict[str, Any], goal: float, detail: dict[str, Any] | None = None, *, holds: bool = True
) -> Result:
    """Return what was timed as a figure, met when the speedup is the goal or more and whatever else `holds`."""
    return _result(name, found, f">= {goal:g}", holds and found["latency"]["speedup"] >= goal, detail)


def _result(name: str, found: dict[str, Any], goal: str, met: bool, detail: dict[str, Any] | None = None) -> Result:
    latency = found["latency"]
    return Result(
        name=name,
        value=latency["speedup"],
        unit="x",
        goal=goal,
        met=met,
        n=latency["rounds"],
        spread=_interval(found),
        detail={
            "latency": latency,
            "threads": found["threads"],
            "host": describe_host().to_dict(),
            **(detail or {}),
        },
    )
