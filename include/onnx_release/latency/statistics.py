"""Statistics of interleaved timings: the ratio of two medians and its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
"""Times of shape (rounds, calls per round), all positive."""

# Resamples per array operation: limits the memory to this many rows, with one weight per timed call.
_CHUNK = 64
_SEED = 20261122
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

    `resampled` has the sorted ratios of the bootstrap's resamples. `repeats` has the ratios of consecutive parts of the
    rounds, in order of time.
    """

    value: float
    resampled: npt.NDArray[np.float64]
    repeats: npt.NDArray[np.float64]

    def interval(self, confidence: float) -> Interval:
        """Return the wider of the bootstrap's and the repeats' intervals; it always includes the estimate.

        The bootstrap assumes independent rounds. On a machine that drifts they are not, and the ratios of consecutive
        parts differ by more than the bootstrap's interval.
        """
        from scipy.special import stdtrit  # here: it takes a while to import, and few callers need an interval

        tail = (1.0 - confidence) / 2.0
        low, high = (float(edge) for edge in np.quantile(self.resampled, (tail, 1.0 - tail)))
        count = len(self.repeats)
        if count >= _REPEATS_MIN:
            # Student's interval for the mean of the repeats' logarithms.
            standard_error = float(np.std(np.log(self.repeats), ddof=1)) / math.sqrt(count)
            factor = math.exp(standard_error * float(stdtrit(count - 1, 1.0 - tail)))
            low, high = min(low, self.value / factor), max(high, self.value * factor)
        return Interval(value=self.value, low=min(low, self.value), high=max(high, self.value), confidence=confidence)


def ratio_of_medians(numerator: Times, denominator: Times, resamples: int, seed: int = _SEED) -> RatioOfMedians:
    """Return median(numerator) / median(denominator) over all calls, with a paired bootstrap over rounds.

    The bootstrap draws whole rounds, for both sides together. Calls of one block share the state of the machine, and
    so do the two blocks of a round: drawing single calls would give an interval that is too narrow.

    Args:
        numerator: times of one side.
        denominator: times of the other side, of the same shape.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.

    Raises:
        ValueError: if the shapes differ, are not (rounds, calls), or have no elements.
    """
    if numerator.shape != denominator.shape or numerator.ndim != 2 or numerator.size == 0:
        raise ValueError(f"both sides need the same (rounds, calls) shape, not {numerator.shape}, {denominator.shape}")
    generator = np.random.default_rng(seed)
    rounds = numerator.shape[0]
    ratios = []
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        weights = generator.multinomial(rounds, np.full(rounds, 1.0 / rounds), size=count)
        ratios.append(_weighted_medians(numerator, weights) / _weighted_medians(denominator, weights))
    value = float(np.median(numerator) / np.median(denominator))
    parts = np.array_split(np.arange(rounds), max(1, min(_REPEATS, rounds // 3)))
    repeats = np.array([np.median(numerator[part]) / np.median(denominator[part]) for part in parts])
    return RatioOfMedians(value=value, resampled=np.sort(np.concatenate(ratios)), repeats=repeats)


def _weighted_medians(times: Times, weights: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the median of all calls for each row of weights.

    Args:
        times: shape (rounds, calls).
        weights: shape (resamples, rounds); the number of times that each round is repeated.
    """
    order = np.argsort(times, axis=None)
    values = times.ravel()[order]
    round_of = order // times.shape[1]
    cumulative = np.cumsum(weights[:, round_of], axis=1, dtype=np.int64)
    # With an even count the median is the mean of the two middle values, as in numpy.median.
    lower = (2 * cumulative >= cumulative[:, -1:]).argmax(axis=1)
    upper = (2 * cumulative > cumulative[:, -1:]).argmax(axis=1)
    medians: npt.NDArray[np.float64] = (values[lower] + values[upper]) / 2.0
    return medians
