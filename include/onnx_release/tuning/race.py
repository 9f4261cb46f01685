"""Interleaved timing of variants: elimination of the slower ones, and a final with all that are left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx_release.latency.host_lock import HostLock
from onnx_release.latency.rounds import Block, Round, calls_per_block, run_round, summarize, wall_times
from onnx_release.latency.statistics import Interval, ratio_of_medians
from onnx_release.limits import ELIMINATION_ROUNDS_MIN, MeasurePlan
from onnx_release.records import SideLatency
from onnx_release.runners import Runner
from onnx_release.samples.sample import Sample

# The parts of the time at which a timing can end. Each look at the intervals can stop on a lucky one, so all looks
# together share the error.
_LOOKS = (0.125, 0.25, 0.5, 1.0)
# An interval of this relative width ends an elimination, even if it contains the baseline's speed.
_ELIMINATION_WIDTH = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latency of one runner, and its speedup over the baseline.

    `strict_speedup` is the speedup at the higher confidence that the checks need.
    """

    side: SideLatency
    speedup: Interval
    strict_speedup: Interval
    rounds: int

    @property
    def has_enough_rounds(self) -> bool:
        """True if the intervals have enough rounds to be used."""
        return self.rounds >= ELIMINATION_ROUNDS_MIN

    @property
    def is_slower(self) -> bool:
        """True if the runner is clearly slower than the baseline."""
        return self.has_enough_rounds and self.strict_speedup.high < 1.0

    @property
    def is_faster(self) -> bool:
        """True if the runner is clearly faster than the baseline, at the plan's own confidence."""
        return self.has_enough_rounds and self.speedup.low > 1.0

    @property
    def speedup_text(self) -> str:
        """The speedup and its interval for people."""
        return f"{self.speedup.value:.2f} [{self.speedup.low:.2f}, {self.speedup.high:.2f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """Timing of several runners under the same conditions.

    `baseline` is the name of the runner that every speedup refers to. `lock` is held during a timing, and not between
    two timings.
    """

    baseline: str
    sample: Sample
    plan: MeasurePlan
    lock: HostLock = field(default_factory=HostLock)

    def run_elimination(self, runners: Mapping[str, Runner], seconds: float) -> dict[str, Timing]:
        """Time a few runners until each is clearly slower or faster than the baseline, or the time is up."""
        return self._time(runners, seconds, ELIMINATION_ROUNDS_MIN, final=False)

    def run_final(self, runners: Mapping[str, Runner], seconds: float) -> dict[str, Timing]:
        """Time the runners until every interval is narrow, or the time is up."""
        return self._time(runners, seconds, self.plan.rounds_min, final=True)

    def _time(
        self, runners: Mapping[str, Runner], seconds: float, rounds_min: int, *, final: bool
    ) -> dict[str, Timing]:
        names, opened = list(runners), list(runners.values())
        with self.lock.held():
            calls = calls_per_block([run_round(opened, self.sample, [1] * len(opened), first=0)])
            begin, rounds = time.perf_counter(), list[Round]()
            for part in _LOOKS:
                while time.perf_counter() - begin < part * seconds or len(rounds) < 2:
                    rounds.append(run_round(opened, self.sample, calls, first=len(rounds) % len(opened)))
                timings = self._timings(names, rounds)
                enough = timings[self.baseline].rounds >= rounds_min
                if enough and all(self._is_settled(name, timing, final=final) for name, timing in timings.items()):
                    break
        return timings

    def _is_settled(self, name: str, timing: Timing, *, final: bool) -> bool:
        if name == self.baseline:
            return True
        strict = timing.strict_speedup
        if final:
            return strict.relative_width <= self.plan.interval_width_max / 2
        return strict.relative_width <= _ELIMINATION_WIDTH or strict.high < 1.0 or strict.low > 1.0

    def _timings(self, names: Sequence[str], rounds: Sequence[Round]) -> dict[str, Timing]:
        quiet = [one for one in rounds if one.is_quiet]
        kept = quiet if len(quiet) >= ELIMINATION_ROUNDS_MIN else rounds
        blocks = {name: [one.blocks[place] for one in kept] for place, name in enumerate(names)}
        return {name: self._timing(blocks[self.baseline], own) for name, own in blocks.items()}

    def _timing(self, baseline: Sequence[Block], own: Sequence[Block]) -> Timing:
        side = summarize(own, self.sample.batch_size)
        if own is baseline:
            one = Interval(value=1.0, low=1.0, high=1.0, confidence=self.plan.confidence)
            return Timing(side=side, speedup=one, strict_speedup=one, rounds=len(own))
        ratio = ratio_of_medians(wall_times(baseline), wall_times(own))
        return Timing(
            side=side,
            speedup=ratio.interval(self.plan.confidence),
            strict_speedup=ratio.interval(self.plan.confidence, len(_LOOKS)),
            rounds=len(own),
        )


def find_slower(timings: Mapping[str, Timing]) -> dict[str, str]:
    """Return the runners that are clearly slower than the best of these, with a text that compares both."""
    usable = {name: timing for name, timing in timings.items() if timing.has_enough_rounds}
    if not usable:
        return {}
    best = max(usable, key=lambda name: usable[name].strict_speedup.low)
    return {
        name: f"{timing.speedup_text}, and {best} has {usable[best].speedup_text}"
        for name, timing in usable.items()
        if timing.strict_speedup.high < usable[best].strict_speedup.low
    }


def select_fastest(timings: Mapping[str, Timing], ranks: Mapping[str, tuple[int, int]]) -> str | None:
    """Return the name of the fastest runner, or None if no runner is clearly faster than the baseline.

    A runner within the interval of the fastest counts as equally fast. Among those the lowest rank wins.

    Args:
        timings: the timings of the final.
        ranks: the rank of each runner that may be selected; the more exact and simpler has the lower rank.
    """
    faster = {name: timings[name] for name in ranks if name in timings and timings[name].is_faster}
    if not faster:
        return None
    best = max(faster.values(), key=lambda timing: timing.speedup.value)
    equal = [name for name, timing in faster.items() if timing.speedup.value >= best.speedup.low]
    return min(equal, key=lambda name: (ranks[name], -faster[name].speedup.value))
