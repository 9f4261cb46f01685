"""Both sides timed by turns on one machine, until the ratio of their medians can be trusted or the time is up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_release.errors import Refused
from onnx_release.latency.host import CpuWait
from onnx_release.latency.statistics import Interval, RatioOfMedians, Times, ratio_of_medians
from onnx_release.limits import CALLS_PER_ROUND_MAX, CPU_WAIT_SHARE_MAX, MEASURE_BLOCK_S, PROCESS_SPREAD, MeasurePlan
from onnx_release.records import BatchLatency, SideLatency
from onnx_release.runners import Runner
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A block of each side, and the part of the round that this process's threads waited for a CPU (None: unknown)."""

    torch: Block
    onnxruntime: Block
    cpu_wait_share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A block of each of several runners, in the runners' own order; `cpu_wait_share` as in `Round`."""

    blocks: tuple[Block, ...]
    cpu_wait_share: float | None


def measure(sides: Sides, sample: Sample, plan: MeasurePlan, speedup_limit: float | None = None) -> BatchLatency:
    """Time both sides on one sample, in interleaved rounds.

    The sides change order with each round (ABBA), so that a drift of the machine falls on both. Each block begins with
    a call that is not timed: it pays for the caches and the threads that the other side left behind. Rounds in which
    others had the CPU are left out, of both sides, once `plan.rounds_min` undisturbed ones are there.

    :param speedup_limit: the speedup to be decided about; None when this batch size is only reported.
    """
    calls = calls_per_block(_warmed_up(sides, sample, plan))
    rounds: list[Round] = []
    begin = time.perf_counter()
    for look_s in _look_times(plan):
        while len(rounds) < 2 or _goes_on(time.perf_counter() - begin, len(rounds), look_s, plan):
            rounds.append(_run_round(sides, sample, calls, swapped=len(rounds) % 2 == 1))
        quiet = [one for one in rounds if is_quiet(one)]
        if len(quiet) >= plan.rounds_min:
            strict = _interval(quiet, plan, 1.0 - (1.0 - plan.confidence) / _LOOKS_MAX)
            if _is_conclusive(strict, plan, speedup_limit):
                break
    measured_s = time.perf_counter() - begin
    kept = quiet if len(quiet) >= plan.rounds_min else rounds
    interval = _interval(kept, plan, plan.confidence)
    waits = [one.cpu_wait_share for one in kept if one.cpu_wait_share is not None]
    return BatchLatency(
        batch_size=sample.batch_size,
        torch=summarise([one.torch for one in kept], sample.batch_size),
        onnxruntime=summarise([one.onnxruntime for one in kept], sample.batch_size),
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


def is_quiet(one: Round | Turn) -> bool:
    """Say whether its times are the models' own; where the kernel does not tell, they have to pass for that."""
    return one.cpu_wait_share is None or one.cpu_wait_share <= CPU_WAIT_SHARE_MAX


def ratio_of(rounds: Sequence[Round], plan: MeasurePlan) -> RatioOfMedians:
    """Return PyTorch's median over ONNX Runtime's, over all timed calls of these rounds."""
    torch = _wall([one.torch for one in rounds])
    return ratio_of_medians(torch, _wall([one.onnxruntime for one in rounds]), plan.bootstrap_samples)


def _interval(rounds: Sequence[Round], plan: MeasurePlan, confidence: float) -> Interval:
    """Return what these rounds leave open, and what another process would have measured instead."""
    return ratio_of(rounds, plan).interval(confidence).widened(PROCESS_SPREAD)


def _is_conclusive(interval: Interval, plan: MeasurePlan, limit: float | None) -> bool:
    return interval.relative_width <= plan.interval_width_max and not (limit is not None and interval.straddles(limit))


def _look_times(plan: MeasurePlan) -> Iterator[float]:
    """Yield when to look at the interval, in seconds from the start: doubling, so that there are few looks."""
    look_s = plan.measure_min_s
    for _ in range(_LOOKS_MAX - 1):
        if look_s >= plan.measure_max_s:
            break
        yield look_s
        look_s = max(2.0 * look_s, plan.measure_max_s / 2**_LOOKS_MAX)
    yield plan.measure_max_s


def _goes_on(elapsed_s: float, rounds: int, look_s: float, plan: MeasurePlan) -> bool:
    if elapsed_s >= plan.measure_max_s:
        return False
    return elapsed_s < look_s or rounds < plan.rounds_min


def _warmed_up(sides: Sides, sample: Sample, plan: MeasurePlan) -> float:
    """Run the warm-up rounds; return the seconds of the fastest call of them, or of one call when there are none."""
    warmup = [_run_round(sides, sample, 1, swapped=False) for _ in range(max(1, plan.warmup_rounds))]
    return min(min(block.wall_s) for one in warmup for block in (one.torch, one.onnxruntime))


def calls_per_block(fastest_s: float) -> int:
    """Return how many calls make a block of the fastest runner last long enough, given the seconds of one."""
    wanted = int(np.ceil(MEASURE_BLOCK_S / max(fastest_s, 1e-9)))
    return max(1, min(CALLS_PER_ROUND_MAX, wanted))


def run_turn(runners: Sequence[Runner], sample: Sample, calls: int, first: int) -> Turn:
    """Time a block of each runner, one after the other, beginning with the one at `first`."""
    wait = CpuWait()
    places = [(first + step) % len(runners) for step in range(len(runners))]
    found = {place: _time_block(runners[place], sample, calls) for place in places}
    return Turn(blocks=tuple(found[place] for place in range(len(runners))), cpu_wait_share=wait.share())


def _run_round(sides: Sides, sample: Sample, calls: int, *, swapped: bool) -> Round:
    turn = run_turn((sides.torch, sides.onnxruntime), sample, calls, first=int(swapped))
    return Round(torch=turn.blocks[0], onnxruntime=turn.blocks[1], cpu_wait_share=turn.cpu_wait_share)


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
    reported = plan.replace(measure_max_s=min(plan.measure_max_s, plan.reported_max_s))
    return tuple(
        measure(sides, samples[size], plan if size in limits else reported, limits.get(size))
        for size in sorted(samples)
    )
