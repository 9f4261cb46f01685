"""Rule that ends a measurement: the checks of the interval, the rounds that count, and the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from onnx_release.latency.rounds import Block, Round, fastest_s, wall_times
from onnx_release.latency.statistics import Interval, RatioOfMedians, Times, bounds_of_disturbed, ratio_of_medians
from onnx_release.limits import PROCESS_SPREAD, LatencyBudget, MeasurePlan

# Places of the sides in the blocks of a round.
REFERENCE, CANDIDATE, CHAMPION = 0, 1, 2
# Each check of the interval can stop on a lucky one, so all checks together share the error.
_LOOKS = 7
# A longer measurement cannot settle a speedup near its limit when the rounds add less than this part of the spread
# between processes: the whole interval is then at most 3 % wider than the narrowest possible one.
_EXHAUSTED_SHARE = 0.25
# A speedup whose bounds are so far from every limit is settled without quiet rounds.
_FAR_FACTOR = 3.0
# A call that waited for a CPU takes longer than this, the shortest time slice of Linux's scheduler. On a busy host with
# only longer calls, every call of several threads may have waited: 13 ms instead of 0.1 were measured.
_TIME_SLICE_S = 1e-3
# More time makes no quiet host: after this part of it, a speedup that is only reported has had enough disturbed rounds.
_PATIENCE_SHARE = 0.49


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Rounds that count.

    `has_enough` is True with enough quiet rounds, which are then the only ones. `is_quiet` is True if disturbed rounds
    are the exception: a slow model has few rounds on a quiet host too.
    """

    rounds: Sequence[Round]
    disturbed: int
    has_enough: bool
    is_quiet: bool

    def blocks(self, side: int) -> list[Block]:
        """Return the blocks of one side."""
        return _blocks(self.rounds, side)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingRule:
    """Rule for one batch size.

    `budget` has the limits of the speedup; None if it is only reported. `champion_speed_min` is the limit of the speed
    relative to the champion; None without a champion.
    """

    plan: MeasurePlan
    budget: LatencyBudget | None
    champion_speed_min: float | None = None

    def look_times(self) -> Iterator[float]:
        """Yield the times of the checks of the interval, in s from the start. Each is the same multiple of the last."""
        longest = self.plan.measure_max_s
        first = max(self.plan.measure_min_s, longest / 2**_LOOKS)
        for look in range(_LOOKS):
            yield longest * min(1.0, first / longest) ** (1.0 - look / (_LOOKS - 1))

    def ends(self, rounds: Sequence[Round], look_s: float) -> bool:
        """Return True if the speedup is settled against every limit at this look, or if more rounds cannot settle it.

        Each look has one interval, so all looks together keep their error.
        """
        quiet, enough = _quiet(rounds), self.plan.rounds_min
        if len(rounds) < enough:
            return False
        if len(quiet) >= enough and all(self._settles(quiet, side, limits) for side, limits in self._limits.items()):
            return True
        if self.budget is None:
            is_late = look_s > _PATIENCE_SHARE * self.plan.measure_max_s
            return is_late and len(rounds) >= 2 * max(enough, len(quiet))
        return len(quiet) < enough and self._is_far_from_limits(rounds)

    def keep(self, rounds: Sequence[Round], otherwise: Sequence[Round]) -> Kept:
        """Return the rounds that count; `otherwise`, if there was no time for one."""
        quiet = _quiet(rounds)
        has_enough = len(quiet) >= self.plan.rounds_min
        return Kept(
            rounds=quiet if has_enough else rounds or otherwise,
            disturbed=len(rounds) - len(quiet),
            has_enough=has_enough,
            is_quiet=has_enough or 2 * len(quiet) >= len(rounds),
        )

    def speedup(self, kept: Kept, side: int = REFERENCE) -> Interval:
        """Return the time of a side over the candidate's, with its interval.

        The interval of disturbed rounds has the bounds of their fastest calls.
        """
        if kept.is_quiet:
            return self.interval(kept.rounds, side)
        bounds = self._bounds(kept.rounds, side)
        reports_nothing = self.budget is None and not _has_undisturbed_calls(kept.rounds)
        return replace(bounds, low=0.0) if reports_nothing else bounds

    def is_conclusive(self, interval: Interval) -> bool:
        """Return True if the speedup is on one side of its limit. Only a reported speedup needs a narrow interval."""
        if self.budget is None:
            return interval.relative_width <= self.plan.interval_width_max
        return not interval.contains(self.budget.speedup_min)

    def interval(self, rounds: Sequence[Round], side: int = REFERENCE) -> Interval:
        """Return the interval of a side's time over the candidate's, widened by the spread between processes."""
        return self._of_rounds(_ratio(rounds, side)).widened(PROCESS_SPREAD)

    @property
    def _limits(self) -> dict[int, LatencyBudget | None]:
        """The limits by side."""
        if self.budget is None or self.champion_speed_min is None:
            return {REFERENCE: self.budget}
        slowest = self.champion_speed_min
        return {
            REFERENCE: self.budget,
            CHAMPION: self.budget.replace(speedup_min=slowest, speedup_goal=slowest),
        }

    def _is_far_from_limits(self, rounds: Sequence[Round]) -> bool:
        """Return True if no disturbance can have moved a speed across a limit."""
        return _has_undisturbed_calls(rounds) and all(
            limits and _is_far(self._bounds(rounds, side), limits) for side, limits in self._limits.items()
        )

    def _settles(self, quiet: Sequence[Round], side: int, limits: LatencyBudget | None) -> bool:
        """Return True if quiet rounds answer the question, or if more of them cannot answer it."""
        rounds = self._of_rounds(_ratio(quiet, side))
        interval = rounds.widened(PROCESS_SPREAD)
        if limits is None:
            return interval.relative_width <= self.plan.interval_width_max
        if not (interval.contains(limits.speedup_min) or interval.contains(limits.speedup_goal)):
            return True
        spread = replace(rounds, low=rounds.value, high=rounds.value).widened(PROCESS_SPREAD)
        return rounds.relative_width <= _EXHAUSTED_SHARE * spread.relative_width

    def _of_rounds(self, ratio: RatioOfMedians) -> Interval:
        return ratio.interval(self.plan.confidence, _LOOKS)

    def _bounds(self, rounds: Sequence[Round], side: int) -> Interval:
        """Return the bounds of the speedup from rounds of which many are disturbed."""
        return bounds_of_disturbed(*_times(rounds, side), self.plan.confidence).widened(PROCESS_SPREAD)


def _quiet(rounds: Sequence[Round]) -> list[Round]:
    return [one for one in rounds if one.is_quiet]


def _blocks(rounds: Sequence[Round], side: int) -> list[Block]:
    return [one.blocks[side] for one in rounds]


def _times(rounds: Sequence[Round], side: int) -> tuple[Times, Times]:
    """Return the times of a side and of the candidate."""
    return wall_times(_blocks(rounds, side)), wall_times(_blocks(rounds, CANDIDATE))


def _ratio(rounds: Sequence[Round], side: int) -> RatioOfMedians:
    """Return the median of a side over the candidate's."""
    return ratio_of_medians(*_times(rounds, side))


def _has_undisturbed_calls(rounds: Sequence[Round]) -> bool:
    """Return True if the fastest call of each side can have waited for no CPU."""
    return max(fastest_s(rounds)) < _TIME_SLICE_S


def _is_far(interval: Interval, limits: LatencyBudget) -> bool:
    """Return True if the bounds are far from both limits."""
    both = (limits.speedup_min, limits.speedup_goal)
    return interval.low >= _FAR_FACTOR * max(both) or interval.high < min(both) / _FAR_FACTOR
