"""Log line about a running measurement: the speedup so far, from the medians of the rounds.

It is an estimate. The report's interval is also the one of repeats, and wider.
"""

from __future__ import annotations

import logging

import numpy as np

from onnx_release.latency.statistics import Times

_log = logging.getLogger(__name__)
_RESAMPLES = 200
_SEED = 20261127
# Newest rounds of an estimate: a line takes some milliseconds.
_ROUNDS_MAX = 500


def log_progress(batch_size: int, reference: Times, candidate: Times, elapsed_s: float, max_s: float) -> None:
    """Log the number of rounds, the speedup with its 95 % interval, and the time.

    Args:
        batch_size: The batch size.
        reference: PyTorch's times, of shape (rounds, calls per round).
        candidate: ONNX Runtime's times of the same rounds.
        elapsed_s: The duration of the measurement so far in seconds.
        max_s: Its longest duration.
    """
    sides = [np.median(side[-_ROUNDS_MAX:], axis=1) for side in (reference, candidate)]
    rounds = len(sides[0])
    drawn = np.random.default_rng(_SEED).integers(0, rounds, (_RESAMPLES, rounds))
    resampled = [np.median(side[drawn], axis=1) for side in sides]
    low, high = np.quantile(resampled[0] / resampled[1], (0.025, 0.975))
    value = np.median(sides[0]) / np.median(sides[1])
    _log.info(
        "batch %d: round %d, %.2fx [%.2f, %.2f], %.0f of %.0f s",
        batch_size, len(reference), value, low, high, elapsed_s, max_s,
    )  # fmt: skip
