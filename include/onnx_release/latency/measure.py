"""Interleaved latency measurement of PyTorch and ONNX Runtime on one machine."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_release.latency.rounds import Round, TimeUp, calls_per_block, fastest_s, run_round, summarize
from onnx_release.latency.stopping import CANDIDATE, CHAMPION, REFERENCE, Kept, StoppingRule
from onnx_release.limits import LatencyBudget, MeasurePlan
from onnx_release.records import BatchLatency, ChampionLatency
from onnx_release.runners import Runner
from onnx_release.runners.progress import Progress
from onnx_release.samples.sample import Sample

_log = logging.getLogger(__name__)

# The warm-up gets at most this part of the time of a batch size, beyond its first round.
_WARMUP_SHARE = 0.1


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
    clock.round_s = sum((1 + count) * fastest for count, fastest in zip(calls, fastest_s(warmup), strict=True))
    champion_speed_min = sides.champion_speed_min if sides.champion else None
    rule = StoppingRule(plan=plan, budget=budget, champion_speed_min=champion_speed_min)
    # Without the time for a round, the warm-up's last one is the measurement.
    kept = rule.keep(_run_rounds(runners, sample, calls, clock, rule), otherwise=warmup[-1:])
    interval = rule.speedup(kept)
    waits = [one.cpu_wait_share for one in kept.rounds if one.cpu_wait_share is not None]
    return BatchLatency(
        batch_size=sample.batch_size,
        reference=summarize(kept.blocks(REFERENCE), sample.batch_size),
        candidate=summarize(kept.blocks(CANDIDATE), sample.batch_size),
        speedup=interval.value,
        speedup_low=interval.low,
        speedup_high=interval.high,
        confidence=interval.confidence,
        rounds=len(kept.rounds),
        rounds_disturbed=kept.disturbed,
        calls_per_round=max(calls),
        measured_s=clock.elapsed_s,
        conclusive=kept.has_enough and rule.is_conclusive(interval),
        cpu_wait_share=float(np.mean(waits)) if waits else None,
        champion=_champion(kept, sample, rule) if sides.champion else None,
    )


def _champion(kept: Kept, sample: Sample, rule: StoppingRule) -> ChampionLatency:
    interval = rule.speedup(kept, CHAMPION)
    return ChampionLatency(
        times=summarize(kept.blocks(CHAMPION), sample.batch_size),
        speed=interval.value,
        speed_low=interval.low,
        speed_high=interval.high,
    )


def _warm_up(runners: Sequence[Runner], sample: Sample, plan: MeasurePlan, clock: _Clock) -> list[Round]:
    once = [1] * len(runners)
    rounds = [clock.run_round(runners, sample, once, first=REFERENCE)]
    while len(rounds) < plan.warmup_rounds and clock.elapsed_s + clock.round_s <= _WARMUP_SHARE * plan.measure_max_s:
        rounds.append(clock.run_round(runners, sample, once, first=REFERENCE))
    return rounds


def _run_rounds(
    runners: Sequence[Runner], sample: Sample, calls: Sequence[int], clock: _Clock, rule: StoppingRule
) -> list[Round]:
    """Run rounds until the rule or the clock ends them."""
    rounds: list[Round] = []
    progress = Progress()
    end = clock.began + clock.max_s
    for look_s in rule.look_times():
        while clock.allows_round() and (clock.elapsed_s < look_s or len(rounds) < rule.plan.rounds_min):
            try:
                rounds.append(clock.run_round(runners, sample, calls, first=len(rounds) % len(runners), until=end))
            except TimeUp:
                break
            if progress.is_due():
                _log_progress(sample, rounds, clock, rule)
        if not clock.allows_round() or rule.ends(rounds, look_s):
            break
    return rounds


def _log_progress(sample: Sample, rounds: Sequence[Round], clock: _Clock, rule: StoppingRule) -> None:
    """Log the speedup so far and the time. The report may leave disturbed rounds out."""
    now = rule.interval(rounds)
    _log.info(
        "batch %d: round %d, %.2fx [%.2f, %.2f], %.0f of %.0f s",
        sample.batch_size, len(rounds), now.value, now.low, now.high, clock.elapsed_s, clock.max_s,
    )  # fmt: skip
