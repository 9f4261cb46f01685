"""Speed of the released model beside PyTorch, and reliability of its measurement."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.figure import Figure, NotMeasured, Result, Setting, Spread, part, progress
from bench.models import ARTIFACT, LARGE, TINY
from bench.sides import Step
from onnx_release.limits import MODEL_FILE

SELF = {
    "onnxruntime": Figure("speedup_self_onnxruntime", condition="1 within interval"),
    "torch": Figure("speedup_self_torch", condition="1 within interval"),
    "pt2": Figure("speedup_pt2_reference", condition="1 within interval"),
}
FP32 = {
    (name, batch): Figure(f"speedup_fp32_{name}_b{batch}", at_least=goal)
    for name in (TINY, LARGE)
    for batch, goal in {1: 1.5, 8: 1.1, 32: 1.0}.items()
}
COMPILED = {name: Figure(f"vs_compile_{name}_b1", at_least=1.2) for name in (TINY, LARGE)}
INT8 = {batch: Figure(f"speedup_int8_large_b{batch}", at_least=2.0) for batch in (1, 8)}
REPEATABILITY = Figure("speedup_repeatability", "", at_most=0.15, condition="9/10 cover")
REPEATS, COVERED_SHARE = 10, 0.9
COSINE_MIN = 0.999
TUNE_MAX_S, TUNE_REHEARSAL_S = 300, 20
# A rehearsal only shows that the measurement runs.
_REHEARSAL_S = 1.0


@part("own", 1, *SELF.values())
def own(setting: Setting) -> Iterator[Result]:
    """Compare each side with itself: 1 must lie within the interval."""
    for pair, figure in SELF.items():
        found = time_pair(setting, pair, TINY, 1)
        low, high = _interval(found)
        yield _speedup(figure, found, condition=low <= 1.0 <= high)


@part("speed", 4, *FP32.values())
def fp32(setting: Setting) -> Iterator[Result]:
    """Compare ONNX Runtime with eager PyTorch, both with every CPU, measured as in a release."""
    for (name, batch), figure in FP32.items():
        yield _speedup(figure, time_pair(setting, "fp32", name, batch, figure.at_least))


@part("repeatability", 3, REPEATABILITY)
def repeatability(setting: Setting) -> Iterator[Result]:
    """Measure one artifact in fresh processes: (90th - 10th percentile) / median of the speedups.

    The interval of nine in ten processes must contain the median of all.
    """
    repeats = setting.choose(REPEATS, REPEATS, 2)
    found = [time_pair(setting, "fp32", TINY, 1, FP32[TINY, 1].at_least) for _ in range(repeats)]
    speedups = [float(one["latency"]["speedup"]) for one in found]
    median = statistics.median(speedups)
    low, high = (float(edge) for edge in np.quantile(speedups, (0.1, 0.9)))
    covered = sum(a <= median <= b for a, b in map(_interval, found))
    detail = {
        "spread_is": "the least and the largest speedup",
        "median_speedup": median,
        "intervals_that_hold_the_median": covered,
        "latencies": [one["latency"] for one in found],
    }
    spread = (min(speedups), max(speedups))
    enough = covered >= COVERED_SHARE * repeats
    yield REPEATABILITY.result((high - low) / median, detail, spread, n=repeats, condition=enough)


@part("compile", 3, *COMPILED.values())
def compiled(setting: Setting) -> Iterator[Result]:
    """Compare ONNX Runtime with torch.compile, which needs a C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise NotMeasured(
            f"torch.compile needs the C++ compiler {compiler!r}, which is missing. Install g++ or set CXX"
        )
    for name, figure in COMPILED.items():
        # An empty cache: a user also waits for the first compilation.
        with tempfile.TemporaryDirectory(prefix="bench-") as cache:
            found = time_pair(setting, "compile", name, 1, figure.at_least, env={"TORCHINDUCTOR_CACHE_DIR": cache})
        progress(f"compiled in {found['ready_s']:.0f} s")
        yield _speedup(figure, found, {"compile_s": found["ready_s"]})


@part("int8", 6, *INT8.values())
def int8(setting: Setting) -> Iterator[Result]:
    """Compare the fastest int8 variant of a tuning with eager PyTorch.

    The goal also requires a cosine of at least 0.999 on all samples of a release. The tuning limits the mean absolute
    error of the positions, too.
    """
    models = setting.models
    out = setting.folder / "int8"
    longest_s = setting.choose(TUNE_MAX_S, TUNE_MAX_S, TUNE_REHEARSAL_S)
    paths = (models.fitted(LARGE), models.exported(LARGE, fitted=True), out, longest_s)
    tuned = Step("bench.release_steps:tune", (models.size(LARGE), *map(str, paths))).run()
    variants = tuned["table"]["variants"]
    if not tuned["variant"]:
        tried = "; ".join(_in_words(one) for one in variants if one["precision"] == "int8")
        raise NotMeasured(f"no int8 variant passed and was faster than the plain export: {tried}")
    best = next(one for one in variants if one["name"] == tuned["variant"])
    progress(f"{tuned['variant']}: {tuned['size_bytes'] / 1e6:.0f} MB, least cosine {best['measures']['cosine']:.6f}")
    detail = {
        "variant": tuned["variant"],
        "least_cosine": best["measures"]["cosine"],
        "sqnr_db": best["measures"]["sqnr_db"],
        "positions_mae": best["task_metrics"],
        "tuning": tuned,
    }
    for batch, figure in INT8.items():
        found = time_pair(setting, "fp32", LARGE, batch, figure.at_least, onnx=out / MODEL_FILE)
        yield _speedup(figure, found, detail, condition=best["measures"]["cosine"] >= COSINE_MIN)


def time_pair(
    setting: Setting,
    pair: str,
    name: str,
    batch: int,
    limit: float | None = None,
    *,
    env: dict[str, str] | None = None,
    onnx: Path | None = None,
) -> dict[str, Any]:
    """Time a pair of `bench.latency_steps` in a fresh process; `onnx` replaces the file of the plain export."""
    onnx = onnx or setting.models.exported(name) / ARTIFACT / MODEL_FILE
    longest_s = setting.choose("", "", str(_REHEARSAL_S))
    arguments = (pair, setting.models.size(name), str(batch), str(onnx), str(limit or ""), longest_s)
    found = Step("bench.latency_steps:time_pair", arguments, env or {}).run()
    timed = found["latency"]
    sides = " and ".join(f"{timed[side]['p50_ms']:.2f} ms" for side in ("reference", "candidate"))
    disturbed = f", {timed['rounds_disturbed']} more disturbed" if timed["rounds_disturbed"] else ""
    progress(f"{pair} {name} batch {batch}: {sides}, {timed['rounds']} rounds{disturbed}")
    return found


def _interval(found: dict[str, Any]) -> Spread:
    return float(found["latency"]["speedup_low"]), float(found["latency"]["speedup_high"])


def _speedup(
    figure: Figure, found: dict[str, Any], detail: dict[str, Any] | None = None, *, condition: bool = True
) -> Result:
    latency = found["latency"]
    detail = {"latency": latency, "threads": found["threads"], **(detail or {})}
    return figure.result(latency["speedup"], detail, _interval(found), n=latency["rounds"], condition=condition)


def _in_words(variant: dict[str, Any]) -> str:
    values = {"speedup": variant["speedup"], "cosine": variant["measures"]["cosine"]}
    figures = [f"{name} {value:.4g}" for name, value in values.items() if value is not None]
    return f"{variant['name']} {variant['outcome']} ({', '.join(filter(None, [*figures, variant['reason']]))})"
