"""Statistics of interleaved timings: the ratio of two medians and its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, stdtrit

Times = npt.NDArray[np.float64]
"""Times of shape (rounds, calls per round), all positive."""

# Consecutive parts of the rounds, each of three rounds or more. Fewer parts than the minimum give no interval.
_REPEATS = 10
_REPEATS_MIN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate and its interval at `confidence`."""

    value: float
    low: float
    high: float
    confidence: float

    @property
    def relative_width(self) -> float:
        """The width as a fraction of the estimate."""
        return (self.high - self.low) / self.value

    def widened(self, spread: float) -> Interval:
        """Return the interval with an independent error added.

        Args:
            spread: standard deviation of that error, on the logarithm of the value.
        """
        extra = spread * NormalDist().inv_cdf((1.0 + self.confidence) / 2.0)
        low, high = (math.hypot(math.log(self.value / edge), extra) for edge in (self.low, self.high))
        return replace(self, low=self.value / math.exp(low), high=self.value * math.exp(high))

    def contains(self, limit: float) -> bool:
        """Return True if the true value can be on either side of `limit`."""
        return self.low < limit <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioOfMedians:
    """Ratio of two sides' medians.

    `paired` has the ratio of each round's two medians, sorted. `repeats` has the ratios of consecutive parts of the
    rounds, in order of time.
    """

    value: float
    paired: npt.NDArray[np.float64]
    repeats: npt.NDArray[np.float64]

    def interval(self, confidence: float, looks: int = 1) -> Interval:
        """Return the wider of the rounds' and the repeats' intervals; it always includes the estimate.

        The rounds' interval assumes independent rounds. On a machine that drifts they are not, and the ratios of
        consecutive parts differ by more than that interval.

        Args:
            confidence: the probability that all the intervals of `looks` contain the true value.
            looks: how often the interval is computed in one measurement, of which any may end it.
        """
        tail = (1.0 - confidence) / 2.0 / looks
        low, high = self._rounds_interval(tail)
        below, above = self._repeats_interval(tail)
        return Interval(
            value=self.value, low=min(low, below, self.value), high=max(high, above, self.value), confidence=confidence
        )

    def _rounds_interval(self, tail: float) -> tuple[float, float]:
        """Return the interval of the rounds' median ratio by the sign test, which assumes no distribution."""
        count = len(self.paired)
        # The true median is below the k-th smallest ratio with the probability of fewer than k heads in `count` throws.
        rank = int(np.searchsorted(bdtr(np.arange(count), count, 0.5), tail, side="right"))
        rank = max(rank, 1)
        return float(self.paired[rank - 1]), float(self.paired[count - rank])

    def _repeats_interval(self, tail: float) -> tuple[float, float]:
        """Return Student's interval for the mean of the repeats' logarithms, around the estimate."""
        count = len(self.repeats)
        if count < _REPEATS_MIN:
            return self.value, self.value
        standard_error = float(np.std(np.log(self.repeats), ddof=1)) / math.sqrt(count)
        factor = math.exp(standard_error * float(stdtrit(count - 1, 1.0 - tail)))
        return self.value / factor, self.value * factor


def bounds_of_disturbed(numerator: Times, denominator: Times, confidence: float) -> Interval:
    """Return bounds of the ratio of two medians on a quiet host, from calls on a busy one.

    Other processes only slow a call, and they can slow one side much more: each wait of PyTorch's threads for each
    other then lasts as long as another process runs. So the fastest call of a side is at most its median on a quiet
    host, and the median of all calls is at least that.

    Args:
        numerator: times of one side.
        denominator: times of the other side.
        confidence: the `confidence` of the result.
    """
    above, below = (side.min() for side in (numerator, denominator))
    return Interval(
        value=float(above / below),
        low=float(above / np.median(denominator)),
        high=float(np.median(numerator) / below),
        confidence=confidence,
    )


def ratio_of_medians(numerator: Times, denominator: Times) -> RatioOfMedians:
    """Return median(numerator) / median(denominator) over all calls, with the ratio of each round.

    A round counts once. Its calls share the state of the machine, and so do its two sides: single calls would give an
    interval that is too narrow, and unpaired sides one that is too wide.

    Args:
        numerator: times of one side.
        denominator: times of the other side, of as many rounds.

    Raises:
        ValueError: if the rounds differ, or an array is not (rounds, calls) or has no elements.
    """
    sides = (numerator, denominator)
    if any(side.ndim != 2 or side.size == 0 for side in sides) or len(numerator) != len(denominator):
        raise ValueError(f"both sides need times of the same rounds, not {numerator.shape} and {denominator.shape}")
    rounds = len(numerator)
    parts = np.array_split(np.arange(rounds), max(1, min(_REPEATS, rounds // 3)))
    return RatioOfMedians(
        value=float(np.median(numerator) / np.median(denominator)),
        paired=np.sort(np.median(numerator, axis=1) / np.median(denominator, axis=1)),
        repeats=np.array([np.median(numerator[part]) / np.median(denominator[part]) for part in parts]),
    )
