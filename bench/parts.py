"""The parts of the bench: which figures each gives, and how it measures them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench import big, export, gemm, parsing, profiling, release, speed, tasks, tuning, upload
from bench.results import Result
from bench.scale import workers
from bench.setting import Setting
from bench.watch import backfilling, latency, polling


@dataclass(frozen=True, slots=True)
class Part:
    """Figures that come from the same runs; `minutes` is what it takes on two CPUs, for a person who waits."""

    name: str
    figures: tuple[str, ...]
    measure: Callable[[Setting], Iterator[Result]]
    minutes: int


_SPEEDUPS = tuple(f"speedup_fp32_{size}_b{batch}" for size in ("tiny", "large") for batch in speed.GOALS)
_OWN = ("speedup_self_onnxruntime", "speedup_self_torch", "speedup_pt2_reference")
_RELEASE = (
    "release_wall_ratio", "release_peak_over_model", "release_vs_original", "release_vs_original_peak",
    "artifact_overhead",
)  # fmt: skip
_WORKERS = (
    "releases_per_hour_w1", "releases_per_hour_w2", "releases_per_hour_w4", "workers_ratio_w2", "workers_ratio_w4",
    "moved_over_artifact", "cache_hit_rate",
)  # fmt: skip

# What is timed to a percent comes first: a machine that has worked for an hour may be throttled.
PARTS = (
    Part("own", _OWN, speed.own, 1),
    Part("speed", _SPEEDUPS, speed.fp32, 4),
    Part("repeatability", ("speedup_repeatability",), speed.repeatability, 3),
    Part("gemm", ("gemm_efficiency_b32",), gemm.measure, 2),
    Part("compile", ("vs_compile_tiny_b1", "vs_compile_large_b1"), speed.compiled, 3),
    Part("int8", tuple(f"speedup_int8_large_b{batch}" for batch in tuning.BATCHES), tuning.measure, 6),
    Part("export", ("export_wall_ratio", "export_peak_over_model"), export.measure, 3),
    Part("release", _RELEASE, release.measure, 6),
    Part("profile", ("release_profile_s",), profiling.measure, 2),
    Part("upload", ("upload_ratio",), upload.measure, 2),
    Part("parse", ("dag_parse_s",), parsing.measure, 1),
    Part("tasks", ("task_overhead_s",), tasks.measure, 4),
    Part("watch", ("run_to_release_s",), latency.measure, 6),
    Part("poll", ("poll_ratio",), polling.measure, 5),
    Part("backfill", ("backfill_ratio",), backfilling.measure, 9),
    Part("workers", _WORKERS, workers.measure, 11),
    Part("big", ("big_model",), big.measure, 9),
)


def chosen(names: Sequence[str]) -> list[Part]:
    """Return the parts of these names, or of figures of these names, in the bench's order; all when none is named.

    :raises KeyError: for a name that is neither.
    """
    known = {name for part in PARTS for name in (part.name, *part.figures)}
    if unknown := [name for name in names if name not in known]:
        raise KeyError(f"{', '.join(unknown)} is no part or figure of: {listing()}")
    return [part for part in PARTS if not names or {part.name, *part.figures} & set(names)]


def listing() -> str:
    """Return every part with its figures, as a person asks for them."""
    return "; ".join(f"{part.name} ({', '.join(part.figures)})" for part in PARTS)
