from __future__ import annotations

import math

import numpy as np
import pytest

from onnx_release.latency.statistics import Interval, Times, _student, _weighted_medians, ratio_of_medians
from onnx_release.limits import PROCESS_SPREAD


def _times(seed: int, rounds: int, calls: int, median: float, noise: float = 0.1) -> Times:
    return median * np.exp(np.random.default_rng(seed).normal(0.0, noise, (rounds, calls)))


def test_the_estimate_is_the_ratio_of_the_medians_of_all_calls() -> None:
    a, b = _times(1, 31, 4, 3.0), _times(2, 31, 4, 2.0)
    assert ratio_of_medians(a, b, 100).value == np.median(a) / np.median(b)


@pytest.mark.parametrize("shape", [(5, 3), (4, 1), (6, 2), (1, 1)])
def test_weighted_medians_are_the_medians_of_the_repeated_rounds(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(3)
    times = generator.random(shape)
    weights = generator.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=50)
    expected = [np.median(np.repeat(times, row, axis=0)) for row in weights]
    np.testing.assert_allclose(_weighted_medians(times, weights), expected)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        ratio = ratio_of_medians(_times(seed, 40, 3, 3.0), _times(seed + 1000, 40, 3, 2.0), 300)
        interval = ratio.interval(0.9)
        hits += interval.low <= 1.5 <= interval.high
    assert 165 <= hits <= 196  # 180 expected; seeded, so this never changes by chance


def test_noise_that_both_sides_share_cancels() -> None:
    # The machine is slower in some rounds; the two sides' blocks of a round feel it together.
    drift = np.exp(np.random.default_rng(5).normal(0.0, 0.5, (60, 1)))
    a, b = _times(6, 60, 2, 3.0, 0.01) * drift, _times(7, 60, 2, 2.0, 0.01) * drift
    paired = ratio_of_medians(a, b, 500).interval(0.95)
    unpaired = ratio_of_medians(a, b[np.random.default_rng(8).permutation(60)], 500).interval(0.95)
    assert paired.relative_width < unpaired.relative_width / 3
    assert paired.low <= 1.5 <= paired.high


def test_calls_of_one_round_are_not_counted_as_independent() -> None:
    per_round = _times(9, 20, 1, 3.0, 0.3)
    repeated = np.repeat(per_round, 50, axis=1)
    other = np.full((20, 1), 2.0)
    one = ratio_of_medians(per_round, other, 500).interval(0.95)
    many = ratio_of_medians(repeated, np.repeat(other, 50, axis=1), 500).interval(0.95)
    assert many.relative_width == pytest.approx(one.relative_width, rel=0.15)


def test_repeats_that_disagree_widen_the_interval() -> None:
    # One side is slower for a while, and the other is not: rounds that follow each other are alike.
    a, b = _times(11, 60, 2, 3.0, 0.01), _times(12, 60, 2, 2.0, 0.01)
    steady = ratio_of_medians(a, b, 500).interval(0.95)
    a[:15] *= 1.2
    drifting = ratio_of_medians(a, b, 500)
    bootstrapped = np.ptp(np.quantile(drifting.resampled, (0.025, 0.975))) / drifting.value
    assert steady.relative_width < 0.02
    assert bootstrapped < 0.02
    assert drifting.interval(0.95).relative_width > 0.05


def test_a_drift_does_not_fool_the_interval() -> None:
    hits = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        slow = np.cumsum(generator.normal(0.0, 0.01, (60, 1)), axis=0)
        wander = slow - slow.mean()
        ratio = ratio_of_medians(
            _times(seed + 500, 60, 2, 3.0, 0.02) * np.exp(wander), _times(seed + 900, 60, 2, 2.0, 0.02), 200
        )
        interval = ratio.interval(0.95)
        hits += interval.low <= 1.5 <= interval.high
    assert hits >= 95


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"), [(0.975, 4, 2.776), (0.975, 9, 2.262), (0.995, 9, 3.250)]
)
def test_student(probability: float, freedom: int, expected: float) -> None:
    assert _student(probability, freedom) == pytest.approx(expected, rel=0.01)


def test_the_same_times_give_the_same_interval() -> None:
    a, b = _times(1, 30, 2, 3.0), _times(2, 30, 2, 2.0)
    assert ratio_of_medians(a, b, 300).interval(0.95) == ratio_of_medians(a, b, 300).interval(0.95)


def test_more_confidence_asks_for_a_wider_interval() -> None:
    ratio = ratio_of_medians(_times(1, 30, 2, 3.0), _times(2, 30, 2, 2.0), 1000)
    narrow, wide = ratio.interval(0.8), ratio.interval(0.99)
    assert wide.low < narrow.low <= ratio.value <= narrow.high < wide.high


def test_another_source_of_error_joins_the_interval_by_its_square() -> None:
    interval = Interval(value=2.0, low=2.0 / 1.03, high=2.0 * 1.04, confidence=0.95)
    assert interval.widened(0.0).low == pytest.approx(interval.low)
    assert interval.widened(0.0).high == pytest.approx(interval.high)
    wider = interval.widened(0.03)
    # 1.96 * 0.03 = 0.0588, beside log 1.03 = 0.0296 below and log 1.04 = 0.0392 above.
    assert wider.low == pytest.approx(2.0 / math.exp(0.06583), rel=1e-4)
    assert wider.high == pytest.approx(2.0 * math.exp(0.07067), rel=1e-4)
    assert (wider.value, wider.confidence) == (2.0, 0.95)


def test_processes_that_differ_are_covered_as_often_as_it_says() -> None:
    generator, hits = np.random.default_rng(5), 0
    for seed in range(200):
        own = 1.5 * np.exp(generator.normal(scale=PROCESS_SPREAD))
        a, b = _times(seed, 40, 3, 2.0 * own), _times(seed + 1000, 40, 3, 2.0)
        interval = ratio_of_medians(a, b, 200).interval(0.95).widened(PROCESS_SPREAD)
        hits += interval.low <= 1.5 <= interval.high
    assert hits >= 180


@pytest.mark.parametrize(("limit", "open_"), [(0.9, False), (1.0, False), (1.1, True), (1.2, True), (1.3, False)])
def test_an_interval_straddles_what_it_leaves_open(limit: float, open_: bool) -> None:
    assert Interval(value=1.1, low=1.0, high=1.2, confidence=0.95).straddles(limit) is open_


@pytest.mark.parametrize(("one", "other"), [((3, 2), (3, 1)), ((0, 2), (0, 2)), ((4,), (4,))])
def test_sides_of_different_shape_have_no_ratio(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="same"):
        ratio_of_medians(np.ones(one), np.ones(other), 100)
