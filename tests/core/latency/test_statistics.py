from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest

from onnx_release.latency.statistics import Interval, RatioOfMedians, Times, ratio_of_medians
from onnx_release.limits import PROCESS_SPREAD


def _times(seed: int, rounds: int, calls: int, median: float, noise: float = 0.1) -> Times:
    return median * np.exp(np.random.default_rng(seed).normal(0.0, noise, (rounds, calls)))


def correlated(seed: int, rounds: int, correlation: float, spread: float) -> Times:
    """Return noise of shape (rounds, 1) with this correlation of consecutive rounds and standard deviation."""
    steps = np.random.default_rng(seed).normal(0.0, spread * math.sqrt(1.0 - correlation**2), rounds)
    noise = np.empty(rounds)
    noise[0] = steps[0] / math.sqrt(1.0 - correlation**2)
    for place in range(1, rounds):
        noise[place] = correlation * noise[place - 1] + steps[place]
    return noise[:, None]


def test_the_estimate_is_the_ratio_of_the_medians_of_all_calls() -> None:
    a, b = _times(1, 31, 4, 3.0), _times(2, 31, 4, 2.0)
    assert ratio_of_medians(a, b).value == np.median(a) / np.median(b)


def test_the_interval_covers_the_true_ratio_about_as_often_as_its_confidence() -> None:
    hits = 0
    for seed in range(200):
        ratio = ratio_of_medians(_times(seed, 40, 3, 3.0), _times(seed + 1000, 40, 3, 2.0))
        interval = ratio.interval(0.9)
        hits += interval.low <= 1.5 <= interval.high
    assert 165 <= hits <= 196  # 180 expected; the seeds are fixed


@pytest.mark.parametrize(("correlation", "hits_min"), [(0.3, 190), (0.5, 188), (0.8, 176)])
def test_the_interval_covers_the_true_ratio_when_consecutive_rounds_are_alike(
    correlation: float, hits_min: int
) -> None:
    hits = hits_of_independent_rounds = 0
    for seed in range(200):
        slow = np.exp(correlated(seed, 120, correlation, 0.05))
        ratio = ratio_of_medians(_times(seed + 500, 120, 3, 3.0, 0.02) * slow, _times(seed + 900, 120, 3, 2.0, 0.02))
        hits += _covers(ratio.interval(0.95))
        hits_of_independent_rounds += _covers(replace(ratio, repeats=np.ones(1)).interval(0.95))
    assert hits >= hits_min  # 190 expected; the seeds are fixed
    assert hits > hits_of_independent_rounds


def _covers(interval: Interval) -> bool:
    return interval.low <= 1.5 <= interval.high


@pytest.mark.parametrize(
    ("rounds", "confidence", "rank"), [(10, 0.95, 2), (10, 0.99, 1), (12, 0.99, 2), (30, 0.95, 10), (100, 0.95, 40)]
)
def test_independent_rounds_have_the_interval_of_the_sign_test(rounds: int, confidence: float, rank: int) -> None:
    ratios = np.linspace(1.0, 2.0, rounds)
    interval = RatioOfMedians(value=1.5, paired=ratios, repeats=np.ones(1)).interval(confidence)
    assert (interval.low, interval.high) == (ratios[rank - 1], ratios[-rank])


def test_the_intervals_of_all_looks_share_the_error() -> None:
    ratio = ratio_of_medians(_times(1, 60, 2, 3.0), _times(2, 60, 2, 2.0))
    each, alone = ratio.interval(0.95, looks=5), ratio.interval(0.99)
    assert (each.low, each.high) == pytest.approx((alone.low, alone.high))
    assert each.confidence == 0.95


def test_the_sides_may_have_different_numbers_of_calls() -> None:
    ratio = ratio_of_medians(_times(1, 40, 20, 3.0), _times(2, 40, 1, 2.0))
    assert _covers(ratio.interval(0.95))


def test_the_interval_of_many_calls_takes_little_time() -> None:
    many = _times(1, 559, 200, 3.0), _times(2, 559, 200, 2.0)
    ratio_of_medians(*many).interval(0.95)
    began = time.process_time()
    ratio_of_medians(*many).interval(0.95)
    # Seven looks within 2 % of a measurement of 40 s.
    assert time.process_time() - began < 0.11


def test_noise_in_both_sides_cancels() -> None:
    # The machine is slower in some rounds, for both sides.
    drift = np.exp(np.random.default_rng(5).normal(0.0, 0.5, (60, 1)))
    a, b = _times(6, 60, 2, 3.0, 0.01) * drift, _times(7, 60, 2, 2.0, 0.01) * drift
    paired = ratio_of_medians(a, b).interval(0.95)
    unpaired = ratio_of_medians(a, b[np.random.default_rng(8).permutation(60)]).interval(0.95)
    assert paired.relative_width < unpaired.relative_width / 3
    assert paired.low <= 1.5 <= paired.high


def test_calls_of_one_round_do_not_count_as_independent() -> None:
    per_round = _times(9, 20, 1, 3.0, 0.3)
    repeated = np.repeat(per_round, 50, axis=1)
    other = np.full((20, 1), 2.0)
    one = ratio_of_medians(per_round, other).interval(0.95)
    many = ratio_of_medians(repeated, np.repeat(other, 50, axis=1)).interval(0.95)
    assert many.relative_width == pytest.approx(one.relative_width, rel=0.15)


def test_repeats_that_differ_widen_the_interval() -> None:
    # One side is slower in the first rounds, so consecutive rounds are not independent.
    a, b = _times(11, 60, 2, 3.0, 0.01), _times(12, 60, 2, 2.0, 0.01)
    steady = ratio_of_medians(a, b).interval(0.95)
    a[:15] *= 1.2
    drifting = ratio_of_medians(a, b)
    without_repeats = replace(drifting, repeats=np.ones(1)).interval(0.95).relative_width
    assert steady.relative_width < 0.02
    assert without_repeats < 0.02
    assert drifting.interval(0.95).relative_width > 0.05


def test_the_interval_covers_the_true_ratio_on_a_machine_that_drifts() -> None:
    hits = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        slow = np.cumsum(generator.normal(0.0, 0.01, (60, 1)), axis=0)
        wander = slow - slow.mean()
        ratio = ratio_of_medians(
            _times(seed + 500, 60, 2, 3.0, 0.02) * np.exp(wander), _times(seed + 900, 60, 2, 2.0, 0.02)
        )
        interval = ratio.interval(0.95)
        hits += interval.low <= 1.5 <= interval.high
    assert hits >= 95


@pytest.mark.parametrize(
    ("confidence", "repeats", "quantile"), [(0.95, 5, 2.7764), (0.95, 10, 2.2622), (0.99, 10, 3.2498)]
)
def test_repeats_have_the_interval_of_students_t(confidence: float, repeats: int, quantile: float) -> None:
    ratios = np.exp(np.linspace(-0.1, 0.1, repeats))
    ratio = RatioOfMedians(value=1.0, paired=np.ones(10), repeats=ratios)
    standard_error = np.std(np.log(ratios), ddof=1) / math.sqrt(repeats)
    assert math.log(ratio.interval(confidence).high) == pytest.approx(quantile * standard_error, rel=1e-4)


def test_the_same_times_give_the_same_interval() -> None:
    a, b = _times(1, 30, 2, 3.0), _times(2, 30, 2, 2.0)
    assert ratio_of_medians(a, b).interval(0.95) == ratio_of_medians(a, b).interval(0.95)


def test_more_confidence_gives_a_wider_interval() -> None:
    ratio = ratio_of_medians(_times(1, 30, 2, 3.0), _times(2, 30, 2, 2.0))
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
        interval = ratio_of_medians(a, b).interval(0.95).widened(PROCESS_SPREAD)
        hits += interval.low <= 1.5 <= interval.high
    assert hits >= 180


@pytest.mark.parametrize(("limit", "open_"), [(0.9, False), (1.0, False), (1.1, True), (1.2, True), (1.3, False)])
def test_an_interval_contains_a_limit_above_its_low_end(limit: float, open_: bool) -> None:
    assert Interval(value=1.1, low=1.0, high=1.2, confidence=0.95).contains(limit) is open_


@pytest.mark.parametrize(("one", "other"), [((3, 2), (2, 2)), ((0, 2), (0, 2)), ((4,), (4,))])
def test_arrays_of_different_or_wrong_shape_are_an_error(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="same"):
        ratio_of_medians(np.ones(one), np.ones(other))
