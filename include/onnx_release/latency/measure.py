"""Interleaved latency measurement of PyTorch and ONNX Runtime on one machine."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from onnx_release.errors import LatencyRefused
from onnx_release.latency.host import CpuWait
from onnx_release.latency.statistics import Interval, RatioOfMedians, Times, bounds_of_disturbed, ratio_of_medians
from onnx_release.limits import (
    CALLS_PER_ROUND_MAX,
    CPU_WAIT_SHARE_MAX,
    LATENCY_QUANTILES,
    MEASURE_BLOCK_S,
    PROCESS_SPREAD,
    LatencyBudget,
    MeasurePlan,
)
from onnx_release.records import BatchLatency, ChampionLatency, SideLatency
from onnx_release.runners import Runner
from onnx_release.runners.progress import Progress
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

_log = logging.getLogger(__name__)

# Each look at the interval can stop on a lucky one, so all looks together share the error.
_LOOKS = 7
# The warm-up gets at most this part of the time of a batch size, beyond its first round.
_WARMUP_SHARE = 0.1
# A longer measurement cannot settle a speedup near its limit when the rounds add less than this part of the spread
# between processes: the whole interval is then at most 3 % wider than the narrowest possible one.
_EXHAUSTED_SHARE = 0.25
# A speedup whose bounds are so far from every limit is settled without quiet rounds.
_FAR_FACTOR = 3.0
# A call that waited for a CPU takes longer than this, the shortest time slice of Linux's scheduler. On a busy host with
# only longer calls, every call of several threads may have waited: 13 ms instead of 0.1 were measured.
_TIME_SLICE_S = 1e-3
# Places of the sides in the blocks of a round.
_REFERENCE, _CANDIDATE, _CHAMPION = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Open runners with the same number of threads: PyTorch, ONNX Runtime, and ONNX Runtime with the champion.

    `champion_speed_min` is the required speed relative to the champion at the batch size of the budget.
    """

    reference: Runner
    candidate: Runner
    champion: Runner | None = None
    champion_speed_min: float = 1.0

    @property
    def runners(self) -> tuple[Runner, ...]:
        """The runners in the order of the blocks."""
        return (self.reference, self.candidate, *([self.champion] if self.champion else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Timed calls of one runner in one round.

    `wall_s` has the wall time of each call. `cpu_s` is the process's CPU time per call, over all threads.
    `cpu_wait_share` is the part of the block that the threads of another process waited for a CPU.
    """

    wall_s: tuple[float, ...]
    cpu_s: float
    cpu_wait_share: float | None = None


@runtime_checkable
class SelfTiming(Protocol):
    """Runner whose calls run, and are timed, in another process."""

    def time_block(self, inputs: Arrays, calls: int, until: float) -> Block:
        """Time a block of calls.

        Raises:
            TimeUp: a call would begin after the time `until` of `time.perf_counter`.
        """


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


class TimeUp(Exception):
    """End of the measurement before the end of a round, which a busy host has made longer than the last one."""


@dataclass(slots=True)
class _Clock:
    """Time of one measurement. `round_s` is the time that the next round needs."""

    max_s: float
    began: float
    round_s: float = 0.0

    @property
    def elapsed_s(self) -> float:
        """The time since the start."""
        return time.perf_counter() - self.began

    def allows_round(self) -> bool:
        """Return True if another round ends in time."""
        return self.elapsed_s + self.round_s <= self.max_s

    def run_round(
        self, runners: Sequence[Runner], sample: Sample, calls: Sequence[int], first: int, *, until: float = math.inf
    ) -> Round:
        """Run a round and keep its duration."""
        begin = self.elapsed_s
        done = run_round(runners, sample, calls, first, until=until)
        self.round_s = self.elapsed_s - begin
        return done


def measure_all(
    sides: Sides, samples: Mapping[int, Sample], plan: MeasurePlan, budget: LatencyBudget
) -> tuple[BatchLatency, ...]:
    """Measure every batch size, the smallest first.

    Args:
        sides: the runners.
        samples: one sample per batch size.
        plan: duration and precision of the measurement.
        budget: the limits at its batch size. The other batch sizes get `plan.reported_max_s`.
    """
    reported = plan.replace(measure_max_s=min(plan.measure_max_s, plan.reported_max_s))
    return tuple(
        measure(sides, samples[size], plan, budget)
        if size == budget.batch_size
        else measure(sides, samples[size], reported)
        for size in sorted(samples)
    )


def measure(sides: Sides, sample: Sample, plan: MeasurePlan, budget: LatencyBudget | None = None) -> BatchLatency:
    """Time both sides on one sample in interleaved rounds, until the speedup is settled or the time is up.

    The order of the sides changes with each round (ABBA), so a drift of the machine affects both. Disturbed rounds are
    dropped for both sides, once `plan.rounds_min` quiet rounds exist. The interval is valid at each look: all looks
    together miss the true speedup with the probability 1 - `plan.confidence`. On a host with fewer quiet rounds the
    interval has the bounds that the fastest calls give, and a speedup far from every limit ends the measurement too.

    Args:
        sides: the runners.
        sample: the input of every call.
        plan: duration and precision of the measurement.
        budget: the limits of the speedup; None if this batch size is only reported.

    Raises:
        LatencyRefused: `no_output_values`, if a side returns nothing.
    """
    runners = sides.runners
    clock = _Clock(plan.measure_max_s, began=time.perf_counter())
    warmup = _warm_up(runners, sample, plan, clock)
    calls = calls_per_block(warmup)
    clock.round_s = sum((1 + count) * fastest for count, fastest in zip(calls, _fastest_s(warmup), strict=True))
    rounds: list[Round] = []
    progress = Progress()
    end = clock.began + clock.max_s
    for look_s in _look_times(plan):
        while clock.allows_round() and (clock.elapsed_s < look_s or len(rounds) < plan.rounds_min):
            try:
                rounds.append(clock.run_round(runners, sample, calls, first=len(rounds) % len(runners), until=end))
            except TimeUp:
                break
            if progress.is_due():
                _log_progress(sample, rounds, clock, plan)
        quiet = [one for one in rounds if one.is_quiet]
        if not clock.allows_round():
            break
        if _is_answered(rounds, quiet, sides, plan, budget):
            break
        # More time makes no quiet host.
        if budget is None and len(rounds) >= max(2 * plan.rounds_min, 2 * len(quiet)) and look_s > 0.49 * clock.max_s:
            break
    # Without the time for a round, the warm-up's last one is the measurement.
    has_enough = len(quiet) >= plan.rounds_min
    kept = quiet if has_enough else rounds or warmup[-1:]
    # A slow model has few rounds on a quiet host too.
    is_quiet = has_enough or 2 * len(quiet) >= len(rounds)
    interval = _speedup(kept, plan, is_quiet)
    if not (is_quiet or budget or _has_undisturbed_calls(kept)):
        interval = replace(interval, low=0.0)
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
        calls_per_round=max(calls),
        measured_s=clock.elapsed_s,
        conclusive=has_enough and _is_conclusive(interval, plan, budget),
        cpu_wait_share=float(np.mean(waits)) if waits else None,
        champion=_champion(kept, sample, plan, is_quiet) if sides.champion else None,
    )


def _champion(rounds: Sequence[Round], sample: Sample, plan: MeasurePlan, is_quiet: bool) -> ChampionLatency:
    interval = _speedup(rounds, plan, is_quiet, _CHAMPION)
    return ChampionLatency(
        times=summarize(_blocks(rounds, _CHAMPION), sample.batch_size),
        speed=interval.value,
        speed_low=interval.low,
        speed_high=interval.high,
    )


def _warm_up(runners: Sequence[Runner], sample: Sample, plan: MeasurePlan, clock: _Clock) -> list[Round]:
    once = [1] * len(runners)
    rounds = [clock.run_round(runners, sample, once, first=_REFERENCE)]
    while len(rounds) < plan.warmup_rounds and clock.elapsed_s + clock.round_s <= _WARMUP_SHARE * plan.measure_max_s:
        rounds.append(clock.run_round(runners, sample, once, first=_REFERENCE))
    return rounds


def _log_progress(sample: Sample, rounds: Sequence[Round], clock: _Clock, plan: MeasurePlan) -> None:
    """Log the speedup so far and the time. The report may leave disturbed rounds out."""
    now = _interval(_ratio(rounds), plan)
    _log.info(
        "batch %d: round %d, %.2fx [%.2f, %.2f], %.0f of %.0f s",
        sample.batch_size, len(rounds), now.value, now.low, now.high, clock.elapsed_s, clock.max_s,
    )  # fmt: skip


def _look_times(plan: MeasurePlan) -> Iterator[float]:
    """Yield the times at which the interval is computed, in s from the start. Each is the same multiple of the last."""
    first = max(plan.measure_min_s, plan.measure_max_s / 2**_LOOKS)
    for look in range(_LOOKS):
        yield plan.measure_max_s * min(1.0, first / plan.measure_max_s) ** (1.0 - look / (_LOOKS - 1))


def _times(rounds: Sequence[Round], side: int) -> tuple[Times, Times]:
    """Return the times of a side and of the candidate."""
    return wall_times(_blocks(rounds, side)), wall_times(_blocks(rounds, _CANDIDATE))


def _ratio(rounds: Sequence[Round], side: int = _REFERENCE) -> RatioOfMedians:
    """Return the median of a side over the candidate's."""
    return ratio_of_medians(*_times(rounds, side))


def _interval(ratio: RatioOfMedians, plan: MeasurePlan) -> Interval:
    """Return the speedup's interval, widened by the spread between processes."""
    return ratio.interval(plan.confidence, _LOOKS).widened(PROCESS_SPREAD)


def _bounds(rounds: Sequence[Round], plan: MeasurePlan, side: int = _REFERENCE) -> Interval:
    """Return the bounds of the speedup from rounds of which many are disturbed."""
    return bounds_of_disturbed(*_times(rounds, side), plan.confidence).widened(PROCESS_SPREAD)


def _speedup(rounds: Sequence[Round], plan: MeasurePlan, is_quiet: bool, side: int = _REFERENCE) -> Interval:
    return _interval(_ratio(rounds, side), plan) if is_quiet else _bounds(rounds, plan, side)


def _is_answered(
    rounds: Sequence[Round], quiet: Sequence[Round], sides: Sides, plan: MeasurePlan, budget: LatencyBudget | None
) -> bool:
    """Return True if the speedup is settled against every limit, or if more rounds cannot settle it.

    Each look has one interval, so all looks together keep their error.
    """
    if len(rounds) < plan.rounds_min:
        return False
    limits = {_REFERENCE: budget}
    if budget is not None and sides.champion is not None:
        slowest = sides.champion_speed_min
        limits[_CHAMPION] = budget.replace(speedup_min=slowest, speedup_goal=slowest)
    if len(quiet) >= plan.rounds_min:
        return all(_ends(_ratio(quiet, side), plan, limit) for side, limit in limits.items())
    return _has_undisturbed_calls(rounds) and all(
        limit and _is_far(_bounds(rounds, plan, side), limit) for side, limit in limits.items()
    )


def _has_undisturbed_calls(rounds: Sequence[Round]) -> bool:
    """Return True if the fastest call of each side can have waited for no CPU."""
    return max(_fastest_s(rounds)) < _TIME_SLICE_S


def _is_far(interval: Interval, budget: LatencyBudget) -> bool:
    """Return True if no disturbance can have moved the speedup across a limit."""
    limits = (budget.speedup_min, budget.speedup_goal)
    return interval.low >= _FAR_FACTOR * max(limits) or interval.high < min(limits) / _FAR_FACTOR


def _ends(ratio: RatioOfMedians, plan: MeasurePlan, budget: LatencyBudget | None) -> bool:
    """Return True if the question is answered, or if more rounds cannot answer it."""
    interval = _interval(ratio, plan)
    if budget is None:
        return interval.relative_width <= plan.interval_width_max
    if not (interval.contains(budget.speedup_min) or interval.contains(budget.speedup_goal)):
        return True
    rounds = ratio.interval(plan.confidence, _LOOKS)
    spread = replace(rounds, low=rounds.value, high=rounds.value).widened(PROCESS_SPREAD)
    return rounds.relative_width <= _EXHAUSTED_SHARE * spread.relative_width


def _is_conclusive(interval: Interval, plan: MeasurePlan, budget: LatencyBudget | None) -> bool:
    """Return True if the speedup is on one side of its limit. Only a reported speedup needs a narrow interval."""
    if budget is None:
        return interval.relative_width <= plan.interval_width_max
    return not interval.contains(budget.speedup_min)


def _blocks(rounds: Sequence[Round], side: int) -> list[Block]:
    return [one.blocks[side] for one in rounds]


def calls_per_block(warmup: Sequence[Round]) -> list[int]:
    """Return each runner's number of calls in a block, so that the blocks of all take about the same time."""
    counts = [int(np.ceil(MEASURE_BLOCK_S / max(fastest, 1e-9))) for fastest in _fastest_s(warmup)]
    return [max(1, min(CALLS_PER_ROUND_MAX, count)) for count in counts]


def _fastest_s(rounds: Sequence[Round]) -> list[float]:
    """Return the seconds of each runner's fastest call."""
    return [min(min(block.wall_s) for block in blocks) for blocks in zip(*(one.blocks for one in rounds), strict=True)]


def run_round(
    runners: Sequence[Runner], sample: Sample, calls: Sequence[int], first: int, *, until: float = math.inf
) -> Round:
    """Time one block of each runner, one after the other.

    Args:
        runners: the runners in the order of the returned blocks.
        sample: the input of every call.
        calls: timed calls per block, one number for each runner.
        first: the position of the runner that starts; the others follow in order.
        until: the time of `time.perf_counter` after which no call begins.
    """
    wait = CpuWait()
    places = [(first + step) % len(runners) for step in range(len(runners))]
    blocks = {place: _time_block(runners[place], sample, calls[place], until) for place in places}
    shares = [wait.share(), *(block.cpu_wait_share for block in blocks.values())]
    return Round(
        blocks=tuple(blocks[place] for place in range(len(runners))),
        cpu_wait_share=max((share for share in shares if share is not None), default=None),
    )


def _time_block(runner: Runner, sample: Sample, calls: int, until: float) -> Block:
    if isinstance(runner, SelfTiming):
        return runner.time_block(sample.inputs, calls, until)
    # A model may write into its input. The copy protects the other side and the next block.
    inputs = {name: array.copy() for name, array in sample.inputs.items()}
    # This call is not timed: it refills the caches and threads after the other side.
    _require_values(runner, runner.run(inputs))
    walls = []
    cpu_begin = time.process_time()
    for _ in range(calls):
        begin = time.perf_counter()
        if begin > until:
            raise TimeUp
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
