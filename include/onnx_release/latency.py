"""Both sides timed by turns on one machine, until the ratio of their medians can be trusted or the time is up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_release.errors import Refused
from onnx_release.host import CpuWait
from onnx_release.limits import CALLS_PER_ROUND_MAX, MEASURE_BLOCK_S, MeasurePlan
from onnx_release.records import BatchLatency, SideLatency
from onnx_release.runners import Runner
from onnx_release.samples import Arrays, Sample
from onnx_release.stats import Interval, RatioOfMedians, Times, ratio_of_medians

# Looks at the interval before the time is up: each is another chance to stop on a lucky one, so each asks for more.
_LOOKS_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """The two runners, both open, with equal threads."""

    torch: Runner
    onnxruntime: Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One side's calls of one round: wall time of each, and the process's CPU time over all threads, per call."""

    wall_s: tuple[float, ...]
    cpu_s: float


@dataclass(slots=True)
class Timings:
    """What has been measured so far: a block per round of each side."""

    torch: list[Block] = field(default_factory=list)
    onnxruntime: list[Block] = field(default_factory=list)

    def ratio(self, resamples: int) -> RatioOfMedians:
        """Return PyTorch's median over ONNX Runtime's, over all timed calls."""
        return ratio_of_medians(_wall(self.torch), _wall(self.onnxruntime), resamples)


def measure(sides: Sides, sample: Sample, plan: MeasurePlan, speedup_limit: float | None = None) -> BatchLatency:
    """Time both sides on one sample, in interleaved rounds.

    The sides change order with each round (ABBA), so that a drift of the machine falls on both. Each block begins with
    a call that is not timed: it pays for the caches and the threads that the other side left behind.

    :param speedup_limit: the speedup to be decided about; None when this batch size is only reported.
    """
    calls = _calls_per_round(_warmed_up(sides, sample, plan))
    timings, wait, begin = Timings(), CpuWait(), time.perf_counter()
    for look_s in _look_times(plan):
        while len(timings.torch) < 2 or _goes_on(time.perf_counter() - begin, len(timings.torch), look_s, plan):
            _run_round(sides, sample, calls, timings)
        if len(timings.torch) < plan.rounds_min:
            continue
        strict = timings.ratio(plan.bootstrap_samples).interval(1.0 - (1.0 - plan.confidence) / _LOOKS_MAX)
        if _is_conclusive(strict, plan, speedup_limit):
            break
    measured_s = time.perf_counter() - begin
    interval = timings.ratio(plan.bootstrap_samples).interval(plan.confidence)
    return BatchLatency(
        batch_size=sample.batch_size,
        torch=summarise(timings.torch, sample.batch_size),
        onnxruntime=summarise(timings.onnxruntime, sample.batch_size),
        speedup=interval.value,
        speedup_low=interval.low,
        speedup_high=interval.high,
        confidence=interval.confidence,
        rounds=len(timings.torch),
        calls_per_round=calls,
        measured_s=measured_s,
        conclusive=len(timings.torch) >= plan.rounds_min and _is_conclusive(interval, plan, speedup_limit),
        cpu_wait_share=wait.share(),
    )


def _is_conclusive(interval: Interval, plan: MeasurePlan, limit: float | None) -> bool:
    return interval.relative_width <= plan.interval_width_max and not (limit is not None and interval.straddles(limit))


def _look_times(plan: MeasurePlan) -> Iterator[float]:
    """Yield when to look at the interval, in seconds from the start: doubling, so that there are few looks."""
    look_s = plan.measure_min_s
    for _ in range(_LOOKS_MAX - 1):
        if look_s >= plan.measure_max_s:
            break
        yield look_s
        look_s *= 2.0
    yield plan.measure_max_s


def _goes_on(elapsed_s: float, rounds: int, look_s: float, plan: MeasurePlan) -> bool:
    if elapsed_s >= plan.measure_max_s:
        return False
    return elapsed_s < look_s or rounds < plan.rounds_min


def _warmed_up(sides: Sides, sample: Sample, plan: MeasurePlan) -> float:
    """Run the warm-up rounds; return the seconds of the fastest call of them, or of one call when there are none."""
    warmup = Timings()
    for _ in range(max(1, plan.warmup_rounds)):
        _run_round(sides, sample, 1, warmup)
    return min(min(block.wall_s) for block in (*warmup.torch, *warmup.onnxruntime))


def _calls_per_round(fastest_s: float) -> int:
    wanted = int(np.ceil(MEASURE_BLOCK_S / max(fastest_s, 1e-9)))
    return max(1, min(CALLS_PER_ROUND_MAX, wanted))


def _run_round(sides: Sides, sample: Sample, calls: int, timings: Timings) -> None:
    turns = [(sides.torch, timings.torch), (sides.onnxruntime, timings.onnxruntime)]
    if len(timings.torch) % 2:
        turns.reverse()
    for runner, blocks in turns:
        blocks.append(_time_block(runner, sample, calls))


def _time_block(runner: Runner, sample: Sample, calls: int) -> Block:
    # A model that writes into its input must not change what the other side, or the next block, is given.
    inputs = {name: array.copy() for name, array in sample.inputs.items()}
    _consume(runner, runner.run(inputs))
    walls = []
    cpu_begin = time.process_time()
    for _ in range(calls):
        begin = time.perf_counter()
        outputs = runner.run(inputs)
        walls.append(time.perf_counter() - begin)
    cpu_s = (time.process_time() - cpu_begin) / calls
    _consume(runner, outputs)
    return Block(wall_s=tuple(walls), cpu_s=cpu_s)


def _consume(runner: Runner, outputs: Arrays) -> None:
    """Touch the values: a side that gives nothing, or promises what it has not computed, was not timed."""
    if not outputs or not all(array.tobytes() for array in outputs.values()):
        raise Refused(f"{runner.name}'s outputs", "hold no values, so no latency was measured", "Look at the model.")


def _wall(blocks: Sequence[Block]) -> Times:
    return np.array([block.wall_s for block in blocks], dtype=np.float64)


def summarise(blocks: Sequence[Block], batch_size: int) -> SideLatency:
    """Return one side's figures: percentiles over all timed calls, throughput from their mean, CPU time per round."""
    wall = _wall(blocks)
    return SideLatency(
        p50_ms=float(np.median(wall)) * 1e3,
        p95_ms=float(np.quantile(wall, 0.95)) * 1e3,
        cpu_p50_ms=float(np.median([block.cpu_s for block in blocks])) * 1e3,
        throughput_per_s=batch_size / float(wall.mean()),
    )


def measure_all(
    sides: Sides, samples: Mapping[int, Sample], plan: MeasurePlan, limits: Mapping[int, float]
) -> tuple[BatchLatency, ...]:
    """Measure one sample per batch size, smallest first; `limits` holds the speedups to be decided about, by size."""
    return tuple(measure(sides, samples[size], plan, limits.get(size)) for size in sorted(samples))
