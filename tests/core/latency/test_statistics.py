from __future__ import annotations

import math

import numpy as np
import pytest

from onnx_release.latency.statistics import Interval, RatioOfMedians, Times, _weighted_medians, ratio_of_medians
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


def test_the_interval_covers_the_true_ratio_about_as_often_as_its_confidence() -> None:
    hits = 0
    for seed in range(200):
        ratio = ratio_of_medians(_times(seed, 40, 3, 3.0), _times(seed + 1000, 40, 3, 2.0), 300)
        interval = ratio.interval(0.9)
        hits += interval.low <= 1.5 <= interval.high
    assert 165 <= hits <= 196  # 180 expected; the seeds are fixed


def test_noise_in_both_sides_cancels() -> None:
    # The machine is slower in some rounds, for both sides.
    drift = np.exp(np.random.default_rng(5).normal(0.0, 0.5, (60, 1)))
    a, b = _times(6, 60, 2, 3.0, 0.01) * drift, _times(7, 60, 2, 2.0, 0.01) * drift
    paired = ratio_of_medians(a, b, 500).interval(0.95)
    unpaired = ratio_of_medians(a, b[np.random.default_rng(8).permutation(60)], 500).interval(0.95)
    assert paired.relative_width < unpaired.relative_width / 3
    assert paired.low <= 1.5 <= paired.high


def test_calls_of_one_round_do_not_count_as_independent() -> None:
    per_round = _times(9, 20, 1, 3.0, 0.3)
    repeated = np.repeat(per_round, 50, axis=1)
    other = np.full((20, 1), 2.0)
    one = ratio_of_medians(per_round, other, 500).interval(0.95)
    many = ratio_of_medians(repeated, np.repeat(other, 50, axis=1), 500).interval(0.95)
    assert many.relative_width == pytest.approx(one.relative_width, rel=0.15)


def test_repeats_that_differ_widen_the_interval() -> None:
    # One side is slower in the first rounds, so consecutive rounds are not independent.
    a, b = _times(11, 60, 2, 3.0, 0.01), _times(12, 60, 2, 2.0, 0.01)
    steady = ratio_of_medians(a, b, 500).interval(0.95)
    a[:15] *= 1.2
    drifting = ratio_of_medians(a, b, 500)
    bootstrapped = np.ptp(np.quantile(drifting.resampled, (0.025, 0.975))) / drifting.value
    assert steady.relative_width < 0.02
    assert bootstrapped < 0.02
    assert drifting.interval(0.95).relative_width > 0.05


def test_the_interval_covers_the_true_ratio_on_a_machine_that_drifts() -> None:
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
    ("confidence", "repeats", "quantile"), [(0.95, 5, 2.7764), (0.95, 10, 2.2622), (0.99, 10, 3.2498)]
)
def test_repeats_have_the_interval_of_students_t(confidence: float, repeats: int, quantile: float) -> None:
    ratios = np.exp(np.linspace(-0.1, 0.1, repeats))
    ratio = RatioOfMedians(value=1.0, resampled=np.ones(10), repeats=ratios)
    standard_error = np.std(np.log(ratios), ddof=1) / math.sqrt(repeats)
    assert math.log(ratio.interval(confidence).high) == pytest.approx(quantile * standard_error, rel=1e-4)


def test_the_same_times_give_the_same_interval() -> None:
    a, b = _times(1, 30, 2, 3.0), _times(2, 30, 2, 2.0)
    assert ratio_of_medians(a, b, 300).interval(0.95) == ratio_of_medians(a, b, 300).interval(0.95)


def test_more_confidence_gives_a_wider_interval() -> None:
    ratio = ratio_of_medians(_times(1, 30, 2, 3.0), _times(2, 30, 2, 2.0), 1000)
    narrow, wide = ratio.interval(0.8), ratio.interval(0.99)
    assert wide.low < narrow.low <= ratio.value <= narrow.high < wide.high


def test_an_independent_error_adds_to_the_interval_in_quadrature() -> None:
    interval = Interval(value=2.0, low=2.0 / 1.03, high=2.0 * 1.04, confidence=0.95)
    assert interval.widened(0.0).low == pytest.approx(interval.low)
    assert interval.widened(0.0).high == pytest.approx(interval.high)
    wider = interval.widened(0.03)
    # 1.96 * 0.03 = 0.0588, added to log 1.03 = 0.0296 below and log 1.04 = 0.0392 above.
    assert wider.low == pytest.approx(2.0 / math.exp(0.06583), rel=1e-4)
    assert wider.high == pytest.approx(2.0 * math.exp(0.07067), rel=1e-4)
    assert (wider.value, wider.confidence) == (2.0, 0.95)


def test_the_widened_interval_covers_differences_between_processes() -> None:
    generator, hits = np.random.default_rng(5), 0
    for seed in range(200):
        own = 1.5 * np.exp(generator.normal(scale=PROCESS_SPREAD))
        a, b = _times(seed, 40, 3, 2.0 * own), _times(seed + 1000, 40, 3, 2.0)
        interval = ratio_of_medians(a, b, 200).interval(0.95).widened(PROCESS_SPREAD)
        hits += interval.low <= 1.5 <= interval.high
    assert hits >= 180


@pytest.mark.parametrize(("limit", "open_"), [(0.9, False), (1.0, False), (1.1, True), (1.2, True), (1.3, False)])
def test_an_interval_contains_a_limit_above_its_low_end(limit: float, open_: bool) -> None:
    assert Interval(value=1.1, low=1.0, high=1.2, confidence=0.95).contains(limit) is open_


@pytest.mark.parametrize(("one", "other"), [((3, 2), (3, 1)), ((0, 2), (0, 2)), ((4,), (4,))])
def test_arrays_of_different_or_wrong_shape_are_an_error(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="same"):
        ratio_of_medians(np.ones(one), np.ones(other), 100)
