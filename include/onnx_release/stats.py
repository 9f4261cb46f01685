"""The statistics of interleaved timings: medians, percentiles, and how far a ratio of medians can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
"""Times of shape (rounds, calls per round), all positive."""

# Resamples weighed at once: bounds the memory to this many rows of one weight per timed call.
_CHUNK = 64
_SEED = 20261122


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

    def straddles(self, limit: float) -> bool:
        """Say whether the interval leaves open on which side of `limit` the truth lies."""
        return self.low < limit <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioOfMedians:
    """The ratio of two sides' medians, and the same of resampled rounds, sorted."""

    value: float
    resampled: npt.NDArray[np.float64]

    def interval(self, confidence: float) -> Interval:
        """Return the percentile interval, widened to hold the estimate itself if need be."""
        tail = (1.0 - confidence) / 2.0
        low, high = (float(edge) for edge in np.quantile(self.resampled, (tail, 1.0 - tail)))
        return Interval(value=self.value, low=min(low, self.value), high=max(high, self.value), confidence=confidence)


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
    return RatioOfMedians(value=value, resampled=np.sort(np.concatenate(ratios)))


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
