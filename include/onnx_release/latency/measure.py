"""Interleaved latency measurement of PyTorch and ONNX Runtime on one machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_release.errors import LatencyRefused
from onnx_release.latency.host import CpuWait
from onnx_release.latency.progress import log_progress
from onnx_release.latency.statistics import Interval, Times, ratio_of_medians
from onnx_release.limits import (
    CALLS_PER_ROUND_MAX,
    CPU_WAIT_SHARE_MAX,
    LATENCY_QUANTILES,
    MEASURE_BLOCK_S,
    PROCESS_SPREAD,
    MeasurePlan,
)
from onnx_release.records import BatchLatency, SideLatency
from onnx_release.runners import Runner
from onnx_release.runners.progress import Progress
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

# Each early check of the interval can stop on a lucky one, so all checks together share the error.
_CHECKS_MAX = 5
# Places of the two sides in the blocks of a round.
_REFERENCE, _CANDIDATE = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Two open runners with the same number of threads: PyTorch and ONNX Runtime."""

    reference: Runner
    candidate: Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Timed calls of one runner in one round.

    `wall_s` has the wall time of each call. `cpu_s` is the process's CPU time per call, over all threads.
    """

    wall_s: tuple[float, ...]
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One block of each runner, in the order of the runners.

    `cpu_wait_share` is the part of the round that this process's threads waited for a CPU; None if it is not counted.
    """

    blocks: tuple[Block, ...]
    cpu_wait_share: float | None

    @property
    def is_quiet(self) -> bool:
        """True if the times are the models' own. A round counts as quiet where the kernel does not count waiting."""
        return self.cpu_wait_share is None or self.cpu_wait_share <= CPU_WAIT_SHARE_MAX


def measure_all(
    sides: Sides, samples: Mapping[int, Sample], plan: MeasurePlan, limits: Mapping[int, float]
) -> tuple[BatchLatency, ...]:
    """Measure every batch size, the smallest first.

    Args:
        sides: the two runners.
        samples: one sample per batch size.
        plan: duration and precision of the measurement.
        limits: the required speedup, for the batch sizes that have one. The others get `plan.reported_max_s`.
    """
    reported = plan.replace(measure_max_s=min(plan.measure_max_s, plan.reported_max_s))
    return tuple(
        measure(sides, samples[size], plan if size in limits else reported, limits.get(size))
        for size in sorted(samples)
    )


def measure(sides: Sides, sample: Sample, plan: MeasurePlan, speedup_limit: float | None = None) -> BatchLatency:
    """Time both sides on one sample in interleaved rounds.

    The order of the sides changes with each round (ABBA), so a drift of the machine affects both. Disturbed rounds are
    dropped for both sides, once `plan.rounds_min` quiet rounds exist.

    Args:
        sides: the two runners.
        sample: the input of every call.
        plan: duration and precision of the measurement.
        speedup_limit: the required speedup; None if this batch size is only reported.

    Raises:
        LatencyRefused: `no_output_values`, if a side returns nothing.
    """
    runners = (sides.reference, sides.candidate)
    warmup = [run_round(runners, sample, 1, first=_REFERENCE) for _ in range(max(1, plan.warmup_rounds))]
    calls = calls_per_block(min(min(block.wall_s) for one in warmup for block in one.blocks))
    rounds: list[Round] = []
    progress = Progress()
    begin = time.perf_counter()
    for check_s in _check_times(plan):
        while len(rounds) < 2 or _continues(time.perf_counter() - begin, len(rounds), check_s, plan):
            rounds.append(run_round(runners, sample, calls, first=len(rounds) % 2))
            if progress.is_due():
                _log_progress(sample, rounds, time.perf_counter() - begin, plan)
        quiet = [one for one in rounds if one.is_quiet]
        if len(quiet) >= plan.rounds_min:
            strict = _interval(quiet, plan, 1.0 - (1.0 - plan.confidence) / _CHECKS_MAX)
            if _is_conclusive(strict, plan, speedup_limit):
                break
    measured_s = time.perf_counter() - begin
    kept = quiet if len(quiet) >= plan.rounds_min else rounds
    interval = _interval(kept, plan, plan.confidence)
    waits = [one.cpu_wait_share for one in kept if one.cpu_wait_share is not None]
    return BatchLatency(
        batch_size=sample.batch_size,
        reference=summarize(_blocks(kept, _REFERENCE), sample.batch_size),
        candidate=summarize(_blocks(kept, _CANDIDATE), sample.batch_size),
        speedup=interval.value,
        speedup_low=interval.low,
        speedup_high=interval.high,
        confidence=interval.confidence,
        rounds=len(kept),
        rounds_disturbed=len(rounds) - len(quiet),
        calls_per_round=calls,
        measured_s=measured_s,
        conclusive=len(quiet) >= plan.rounds_min and _is_conclusive(interval, plan, speedup_limit),
        cpu_wait_share=float(np.mean(waits)) if waits else None,
    )


def _log_progress(sample: Sample, rounds: Sequence[Round], elapsed_s: float, plan: MeasurePlan) -> None:
    reference, candidate = (wall_times(_blocks(rounds, side)) for side in (_REFERENCE, _CANDIDATE))
    log_progress(sample.batch_size, reference, candidate, elapsed_s, plan.measure_max_s)


def _check_times(plan: MeasurePlan) -> Iterator[float]:
    """Yield the times of the interval's checks, in seconds from the start. They double, so there are few."""
    check_s = plan.measure_min_s
    for _ in range(_CHECKS_MAX - 1):
        if check_s >= plan.measure_max_s:
            break
        yield check_s
        check_s = max(2.0 * check_s, plan.measure_max_s / 2**_CHECKS_MAX)
    yield plan.measure_max_s


def _continues(elapsed_s: float, rounds: int, check_s: float, plan: MeasurePlan) -> bool:
    if elapsed_s >= plan.measure_max_s:
        return False
    return elapsed_s < check_s or rounds < plan.rounds_min


def _interval(rounds: Sequence[Round], plan: MeasurePlan, confidence: float) -> Interval:
    """Return the speedup's interval, widened by the spread between processes."""
    reference, candidate = (wall_times(_blocks(rounds, side)) for side in (_REFERENCE, _CANDIDATE))
    ratio = ratio_of_medians(reference, candidate, plan.bootstrap_samples)
    return ratio.interval(confidence).widened(PROCESS_SPREAD)


def _is_conclusive(interval: Interval, plan: MeasurePlan, limit: float | None) -> bool:
    return interval.relative_width <= plan.interval_width_max and not (limit is not None and interval.contains(limit))


def _blocks(rounds: Sequence[Round], side: int) -> list[Block]:
    return [one.blocks[side] for one in rounds]


def calls_per_block(fastest_s: float) -> int:
    """Return the number of calls in a block, from the seconds of the fastest runner's call."""
    calls = int(np.ceil(MEASURE_BLOCK_S / max(fastest_s, 1e-9)))
    return max(1, min(CALLS_PER_ROUND_MAX, calls))


def run_round(runners: Sequence[Runner], sample: Sample, calls: int, first: int) -> Round:
    """Time one block of each runner, one after the other.

    Args:
        runners: the runners in the order of the returned blocks.
        sample: the input of every call.
        calls: timed calls per block.
        first: the position of the runner that starts; the others follow in order.
    """
    wait = CpuWait()
    places = [(first + step) % len(runners) for step in range(len(runners))]
    blocks = {place: _time_block(runners[place], sample, calls) for place in places}
    return Round(blocks=tuple(blocks[place] for place in range(len(runners))), cpu_wait_share=wait.share())


def _time_block(runner: Runner, sample: Sample, calls: int) -> Block:
    # A model may write into its input. The copy protects the other side and the next block.
    inputs = {name: array.copy() for name, array in sample.inputs.items()}
    # This call is not timed: it refills the caches and threads after the other side.
    _require_values(runner, runner.run(inputs))
    walls = []
    cpu_begin = time.process_time()
    for _ in range(calls):
        begin = time.perf_counter()
        outputs = runner.run(inputs)
        walls.append(time.perf_counter() - begin)
    cpu_s = (time.process_time() - cpu_begin) / calls
    _require_values(runner, outputs)
    return Block(wall_s=tuple(walls), cpu_s=cpu_s)


def _require_values(runner: Runner, outputs: Arrays) -> None:
    """Read every value, so a lazy output is computed, and refuse outputs without values."""
    if not outputs or not all(array.tobytes() for array in outputs.values()):
        raise LatencyRefused(
            f"The output of {runner.name}",
            "has no values, so its latency cannot be measured",
            "Check the model's outputs on the sample.",
            code="no_output_values",
        )


def wall_times(blocks: Sequence[Block]) -> Times:
    """Return the wall times in s, of shape (rounds, calls per round)."""
    return np.array([block.wall_s for block in blocks], dtype=np.float64)


def summarize(blocks: Sequence[Block], batch_size: int) -> SideLatency:
    """Return one side's percentiles and throughput over all timed calls, and its median CPU time per round."""
    wall = wall_times(blocks)
    return SideLatency(
        p50_ms=float(np.median(wall)) * 1e3,
        p95_ms=float(np.quantile(wall, 0.95)) * 1e3,
        cpu_p50_ms=float(np.median([block.cpu_s for block in blocks])) * 1e3,
        throughput_per_s=batch_size / float(wall.mean()),
        quantiles_ms=tuple(float(value) * 1e3 for value in np.quantile(wall, LATENCY_QUANTILES)),
    )
