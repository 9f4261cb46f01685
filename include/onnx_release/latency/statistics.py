"""The statistics of interleaved timings: medians, percentiles, and how far a ratio of medians can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
"""Times of shape (rounds, calls per round), all positive."""

# Resamples weighed at once: bounds the memory to this many rows of one weight per timed call.
_CHUNK = 64
_SEED = 20261122
# The rounds in as many consecutive parts, of three rounds or more; fewer parts than the second say nothing.
_REPEATS = 10
_REPEATS_MIN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate and its bootstrap interval at `confidence`."""

    value: float
    low: float
    high: float
    confidence: float

    @property
    def relative_width(self) -> float:
        """The interval's width as a part of the estimate."""
        return (self.high - self.low) / self.value

    def widened(self, spread: float) -> Interval:
        """Return the interval with another source of error, of this standard deviation on the logarithm, in it too."""
        extra = spread * NormalDist().inv_cdf((1.0 + self.confidence) / 2.0)
        low, high = (math.hypot(math.log(self.value / edge), extra) for edge in (self.low, self.high))
        return replace(self, low=self.value / math.exp(low), high=self.value * math.exp(high))

    def straddles(self, limit: float) -> bool:
        """Say whether the interval leaves open on which side of `limit` the truth lies."""
        return self.low < limit <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioOfMedians:
    """The ratio of two sides' medians, the same of resampled rounds, sorted, and of consecutive parts of the rounds."""

    value: float
    resampled: npt.NDArray[np.float64]
    repeats: npt.NDArray[np.float64]

    def interval(self, confidence: float) -> Interval:
        """Return what both the bootstrap and the repeats leave open, widened to hold the estimate itself if need be.

        The bootstrap takes rounds for independent of each other. On a machine that drifts they are not, which shows
        when the ratios of consecutive parts differ by more than they then should: their own interval is the wider one.
        """
        tail = (1.0 - confidence) / 2.0
        low, high = (float(edge) for edge in np.quantile(self.resampled, (tail, 1.0 - tail)))
        if len(self.repeats) >= _REPEATS_MIN:
            factor = math.exp(self._half_width(tail))
            low, high = min(low, self.value / factor), max(high, self.value * factor)
        return Interval(value=self.value, low=min(low, self.value), high=max(high, self.value), confidence=confidence)

    def _half_width(self, tail: float) -> float:
        """Return half the width of Student's interval of the repeats' mean, on the logarithm."""
        count = len(self.repeats)
        error = float(np.std(np.log(self.repeats), ddof=1)) / math.sqrt(count)
        return error * _student(1.0 - tail, count - 1)


def _student(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t by its expansion (Abramowitz and Stegun 26.7.5): 1 % off at 4 degrees."""
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def ratio_of_medians(numerator: Times, denominator: Times, resamples: int, seed: int = _SEED) -> RatioOfMedians:
    """Return median(numerator) / median(denominator) over all calls, with a paired bootstrap over rounds.

    A round is the unit that is drawn again, for both sides at once: calls of one block share the state of the machine,
    and so do the two blocks of a round. To draw single calls would claim a precision that the data do not have.
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
    """Return, per row of weights (resamples, rounds), the median of all calls with each round repeated as it says."""
    order = np.argsort(times, axis=None)
    values = times.ravel()[order]
    round_of = order // times.shape[1]
    seen = np.cumsum(weights[:, round_of], axis=1, dtype=np.int64)
    # Half of an even count falls between two values, whose mean is the median (as numpy.median has it).
    lower = (2 * seen >= seen[:, -1:]).argmax(axis=1)
    upper = (2 * seen > seen[:, -1:]).argmax(axis=1)
    medians: npt.NDArray[np.float64] = (values[lower] + values[upper]) / 2.0
    return medians
