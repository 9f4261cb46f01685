"""Efficiency of the released model's matrix products at a large batch, beside the CPU's limit."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from bench.figure import Figure, Result, Setting, part, progress
from bench.models import ARTIFACT, LARGE, TINY
from bench.sides import Step
from onnx_release.latency.host import usable_cpus
from onnx_release.limits import MODEL_FILE

GEMM = Figure("gemm_efficiency_b32", "", at_least=0.85)
BATCH_SIZE = 32


@part("gemm", 2, GEMM)
def measure(setting: Setting) -> Iterator[Result]:
    """Measure FLOP/s of a session's matrix products over those of the best library at the same shapes.

    The whole time of the session counts, with depthwise convolutions, norms and activations; their FLOPs do not. The
    figure is the lesser of both models.
    """
    found = {name: _efficiency(setting, name) for name in (TINY, LARGE)}
    least = min(found, key=lambda name: found[name]["efficiency"])
    value, times = found[least]["efficiency"], found[least]["session_s"]
    best_s = value * statistics.median(times)
    detail = {"value_of": least, "models": found, "threads": usable_cpus()}
    yield GEMM.result(value, detail, (best_s / max(times), best_s / min(times)), n=len(times))


def _efficiency(setting: Setting, name: str) -> dict[str, Any]:
    onnx = setting.models.exported(name) / ARTIFACT / MODEL_FILE
    env = {"OPENBLAS_NUM_THREADS": str(usable_cpus()), "MKL_NUM_THREADS": str(usable_cpus())}
    found = Step("bench.gemm_steps:products", (str(onnx), str(BATCH_SIZE), str(setting.rounds)), env).run()
    session_s = statistics.median(found["session_s"])
    best_s = sum(row["count"] * row["best_s"] for row in found["shapes"])
    found |= {"efficiency": best_s / session_s, "session_gflop_per_s": found["flop"] / session_s / 1e9}
    found |= {"best_gflop_per_s": found["flop"] / best_s / 1e9}
    progress(f"{name}: {found['session_gflop_per_s']:.0f} of {found['best_gflop_per_s']:.0f} GFLOP/s")
    return found
