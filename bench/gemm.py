"""How near the shipped model is to the CPU's own limit, where a large batch makes it all matrix products."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from bench.models import LARGE, TINY
from bench.release_steps import ARTIFACT
from bench.results import Result, say
from bench.setting import Setting
from bench.sides import Step, run_step
from onnx_release.latency.host import describe_host, usable_cpus
from onnx_release.limits import MODEL_FILE

GOAL = 0.85
BATCH_SIZE = 32


def measure(setting: Setting) -> Iterator[Result]:
    """`gemm_efficiency_b32`: FLOP/s of the session's matrix products over those of the best library at the same shapes.

    The session's whole time counts, its depthwise convolutions, norms and activations too, though their FLOPs do not.
    The figure is the lesser of both models'.
    """
    found = {name: _efficiency(setting, name) for name in (TINY, LARGE)}
    least = min(found, key=lambda name: found[name]["efficiency"])
    value, times = found[least]["efficiency"], found[least]["session_s"]
    best_s = value * statistics.median(times)
    yield Result(
        name="gemm_efficiency_b32",
        value=value,
        unit="",
        goal=f">= {GOAL:g}",
        met=value >= GOAL,
        n=len(times),
        spread=(best_s / max(times), best_s / min(times)),
        detail={"value_of": least, "models": found, "threads": usable_cpus(), "host": describe_host().to_dict()},
    )


def _efficiency(setting: Setting, name: str) -> dict[str, Any]:
    onnx = setting.models.exported(name) / ARTIFACT / MODEL_FILE
    env = {"OPENBLAS_NUM_THREADS": str(usable_cpus()), "MKL_NUM_THREADS": str(usable_cpus())}
    found = run_step(Step("bench.gemm_steps", (str(onnx), str(BATCH_SIZE), str(setting.rounds)), env))
    session_s = statistics.median(found["session_s"])
    best_s = sum(row["count"] * row["best_s"] for row in found["shapes"])
    found |= {"efficiency": best_s / session_s, "session_gflop_per_s": found["flop"] / session_s / 1e9}
    found |= {"best_gflop_per_s": found["flop"] / best_s / 1e9}
    say(f"{name}: {found['session_gflop_per_s']:.0f} of {found['best_gflop_per_s']:.0f} GFLOP/s")
    return found
