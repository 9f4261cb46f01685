"""The candidates timed by turns: each in a heat against the plain export, then those that are left all together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_release.latency.host_lock import HostLock
from onnx_release.latency.measure import Block, Round, calls_per_block, run_round, summarize
from onnx_release.latency.statistics import Interval, ratio_of_medians
from onnx_release.limits import HEAT_ROUNDS_MIN, MeasurePlan
from onnx_release.records import SideLatency
from onnx_release.runners import Runner
from onnx_release.samples.sample import Sample

# How often a contest looks whether it is decided; each look is another chance to be taken in by luck.
_LOOKS = 4
_RESAMPLES = 1000
# A heat whose interval is as narrow as this has said what it can, even where it holds the baseline's own speed.
_HEAT_WIDTH = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One contestant's times, and the baseline's median over its own; `decisive` is the same at a higher confidence."""

    side: SideLatency
    speedup: Interval
    decisive: Interval
    rounds: int

    @property
    def trusted(self) -> bool:
        """Whether there were rounds enough for an interval to mean anything."""
        return self.rounds >= HEAT_ROUNDS_MIN

    @property
    def slower(self) -> bool:
        """Whether it is clearly slower than the baseline."""
        return self.trusted and self.decisive.high < 1.0

    @property
    def faster(self) -> bool:
        """Whether it is clearly faster than the baseline, at the plan's own confidence."""
        return self.trusted and self.speedup.low > 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """The conditions that all are timed under. `baseline` is the name of the contestant that ratios are taken to.

    `lock` is held during a heat and a final, and let go between them.
    """

    baseline: str
    sample: Sample
    plan: MeasurePlan
    lock: HostLock = field(default_factory=HostLock)

    def heat(self, runners: Mapping[str, Runner], seconds: float) -> dict[str, Timing]:
        """Time a few contestants until it is clear whether each is slower or faster than the baseline."""
        with self.lock.held():
            return self._time(runners, seconds, HEAT_ROUNDS_MIN, final=False)

    def final(self, runners: Mapping[str, Runner], seconds: float) -> dict[str, Timing]:
        """Time the contestants until every interval is narrow, or the time is up."""
        with self.lock.held():
            return self._time(runners, seconds, self.plan.rounds_min, final=True)

    def _time(
        self, runners: Mapping[str, Runner], seconds: float, rounds_min: int, *, final: bool
    ) -> dict[str, Timing]:
        names, sides = list(runners), list(runners.values())
        warmup = run_round(sides, self.sample, 1, first=0)
        calls = calls_per_block(min(min(block.wall_s) for block in warmup.blocks))
        begin, turns = time.perf_counter(), list[Round]()
        for look in range(1, _LOOKS + 1):
            look_s = seconds * look / _LOOKS
            while time.perf_counter() - begin < look_s or len(turns) < 2:
                turns.append(run_round(sides, self.sample, calls, first=len(turns) % len(sides)))
            timings = self._timings(names, turns)
            enough = next(iter(timings.values())).rounds >= rounds_min
            if enough and all(self._is_decided(name, timing, final=final) for name, timing in timings.items()):
                break
        return timings

    def _is_decided(self, name: str, timing: Timing, *, final: bool) -> bool:
        if name == self.baseline:
            return True
        if final:
            return timing.decisive.relative_width <= self.plan.interval_width_max / 2
        known = timing.decisive.relative_width <= _HEAT_WIDTH
        return known or timing.decisive.high < 1.0 or timing.decisive.low > 1.0

    def _timings(self, names: Sequence[str], turns: Sequence[Round]) -> dict[str, Timing]:
        quiet = [one for one in turns if one.is_quiet]
        kept = quiet if len(quiet) >= HEAT_ROUNDS_MIN else turns
        blocks = {name: [one.blocks[place] for one in kept] for place, name in enumerate(names)}
        # Weighing all calls of many rounds again and again takes time of its own, which is the contest's too.
        samples = min(self.plan.bootstrap_samples, _RESAMPLES)
        return {name: self._timing(blocks[self.baseline], found, samples) for name, found in blocks.items()}

    def _timing(self, baseline: Sequence[Block], own: Sequence[Block], samples: int) -> Timing:
        if own is baseline:
            itself = Interval(value=1.0, low=1.0, high=1.0, confidence=self.plan.confidence)
            side = summarize(own, self.sample.batch_size)
            return Timing(side=side, speedup=itself, decisive=itself, rounds=len(own))
        times = [np.array([block.wall_s for block in blocks], dtype=np.float64) for blocks in (baseline, own)]
        ratio = ratio_of_medians(times[0], times[1], samples)
        return Timing(
            side=summarize(own, self.sample.batch_size),
            speedup=ratio.interval(self.plan.confidence),
            decisive=ratio.interval(1.0 - (1.0 - self.plan.confidence) / _LOOKS),
            rounds=len(own),
        )


def outrun(timings: Mapping[str, Timing]) -> dict[str, str]:
    """Return the contestants that are clearly slower than the best of these, with the words for it."""
    trusted = {name: timing for name, timing in timings.items() if timing.trusted}
    if not trusted:
        return {}
    best = max(trusted, key=lambda name: trusted[name].decisive.low)
    return {
        name: f"{words(timing)} in its heat, when {best} had {words(trusted[best])}"
        for name, timing in trusted.items()
        if timing.decisive.high < trusted[best].decisive.low
    }


def words(timing: Timing) -> str:
    """Return the ratio to the baseline with its interval."""
    ratio = timing.speedup
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def winner(timings: Mapping[str, Timing], ranks: Mapping[str, tuple[int, int]]) -> str | None:
    """Return the contestant that wins, or None when none is clearly faster than the baseline.

    Whoever lies within the interval of the fastest is level with it: then the more exact wins, then the simpler.

    :param ranks: of those that may win, the less the more exact and simple.
    """
    faster = {name: timings[name] for name in ranks if name in timings and timings[name].faster}
    if not faster:
        return None
    best = max(faster.values(), key=lambda timing: timing.speedup.value)
    level = [name for name, timing in faster.items() if timing.speedup.value >= best.speedup.low]
    return min(level, key=lambda name: (ranks[name], -faster[name].speedup.value))
