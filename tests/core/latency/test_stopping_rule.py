"""End of a measurement, on a simulated machine whose clock only the models move."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace
from typing import Self

import numpy as np
import pytest

from onnx_release.latency.measure import Sides, measure, measure_all
from onnx_release.limits import PROCESS_SPREAD, LatencyBudget, MeasurePlan
from onnx_release.records import BatchLatency
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays
from tests.core.latency.test_statistics import correlated

SAMPLE = Sample(name="example", inputs={"x": np.ones((1, 2), np.float32)}, batch_size=1)
OUTPUTS = {"y": np.ones(1)}
MEASUREMENTS = 1000


class QuietHost:
    """A kernel that counts no waiting."""

    def share(self) -> float:
        return 0.0


class BusyHost:
    """A kernel that lets this process wait for half of nearly every round."""

    random = np.random.default_rng(11)

    def share(self) -> float:
        return 0.5 if self.random.random() < 0.97 else 0.0


class NeverQuietHost:
    """A kernel that lets this process wait for half of every round."""

    def share(self) -> float:
        return 0.5


class Machine:
    """A clock in s that stands still except for calls of models."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()
    clocks = SimpleNamespace(perf_counter=made.perf_counter, process_time=made.perf_counter)
    monkeypatch.setattr("onnx_release.latency.measure.time", clocks)
    monkeypatch.setattr("onnx_release.latency.rounds.time", clocks)
    monkeypatch.setattr("onnx_release.latency.rounds.CpuWait", QuietHost)
    return made


@dataclass(slots=True)
class Simulated:
    """A model whose calls take the next of these times."""

    machine: Machine
    times: Iterator[float]
    name: str = "simulated"

    def run(self, inputs: Arrays) -> Arrays:
        self.machine.now += next(self.times)
        return OUTPUTS

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...


def always(seconds: float) -> Iterator[float]:
    while True:
        yield seconds


def noisy(seed: int, seconds: float, spread: float, correlation: float = 0.0) -> Iterator[float]:
    """Yield times around a median, each with its own error and one that consecutive calls share."""
    shared = correlated(seed, 600, correlation, spread)[:, 0] if correlation else np.zeros(600)
    own = np.random.default_rng(seed + 10**6).normal(0.0, 0.02, 600)
    yield from seconds * np.exp(shared + own)
    raise AssertionError("more calls than times")


def endless(seed: int, seconds: float, spread: float) -> Iterator[float]:
    """Yield times around a median, without an end."""
    random = np.random.default_rng(seed)
    while True:
        yield seconds * math.exp(random.normal(0.0, spread))


def sides(machine: Machine, reference: Iterator[float], candidate: Iterator[float]) -> Sides:
    return Sides(reference=Simulated(machine, reference), candidate=Simulated(machine, candidate))


def measurements(machine: Machine, speedup: float, correlation: float, spread: float) -> Iterator[BatchLatency]:
    """Measure in many processes, each with its own error of the speedup."""
    own = np.random.default_rng(7).normal(0.0, PROCESS_SPREAD, MEASUREMENTS)
    plan = MeasurePlan(measure_max_s=10.0)
    for seed in range(MEASUREMENTS):
        slow = noisy(seed, 0.05 * speedup * math.exp(own[seed]), spread, correlation)
        yield measure(sides(machine, slow, noisy(seed + 10**7, 0.05, 0.0)), SAMPLE, plan, LatencyBudget())


@pytest.mark.parametrize(
    ("limit", "correlation", "spread"),
    [("speedup_min", 0.0, 0.0), ("speedup_min", 0.0, 0.1), ("speedup_min", 0.7, 0.03), ("speedup_goal", 0.0, 0.03)],
)
def test_at_most_one_in_twenty_verdicts_at_a_limit_is_wrong(
    machine: Machine, limit: str, correlation: float, spread: float
) -> None:
    speedup = getattr(LatencyBudget(), limit)
    above = below = 0
    for measured in measurements(machine, speedup, correlation, spread):
        above += measured.speedup_low >= speedup
        below += measured.speedup_high < speedup
    # A confidence of 0.95: each wrong side has half of the error.
    assert above + below <= 0.05 * MEASUREMENTS


@pytest.mark.parametrize(("factor", "is_short"), [(19.0, True), (1 / 19.0, True), (2.0, False)])
def test_a_speedup_far_from_its_limits_is_settled_without_quiet_rounds(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, factor: float, is_short: bool
) -> None:
    monkeypatch.setattr("onnx_release.latency.rounds.CpuWait", BusyHost)
    plan, found = MeasurePlan(measure_max_s=3.0), []
    for seed in range(40):
        slow, fast = endless(seed, 0.04e-3 * factor, 0.1), endless(seed + 10**7, 0.04e-3, 0.1)
        found.append(measure(sides(machine, slow, fast), SAMPLE, plan, LatencyBudget()))
    assert all(one.rounds_disturbed > one.rounds / 2 for one in found)
    assert sum(one.measured_s < 0.5 * plan.measure_max_s for one in found) in (range(36, 41) if is_short else range(5))
    assert sum(not one.speedup_low < factor < one.speedup_high for one in found) <= 0.05 * len(found)


@pytest.mark.parametrize(("speedup", "passes"), [(14.0, True), (0.8, False)])
def test_a_busy_host_that_slows_one_side_fifty_times_passes_no_slow_model(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, speedup: float, passes: bool
) -> None:
    monkeypatch.setattr("onnx_release.latency.rounds.CpuWait", NeverQuietHost)
    plan, found = MeasurePlan(measure_max_s=4.0), []
    for seed in range(25):
        waits = np.random.default_rng(seed).random
        slowed = (time * (50.0 if waits() < 0.9 else 1.0) for time in endless(seed, 0.02e-3 * speedup, 0.05))
        measured = measure(sides(machine, slowed, endless(seed + 99, 0.02e-3, 0.05)), SAMPLE, plan, LatencyBudget())
        found.append(measured)
    # The fastest of few undisturbed calls can be slower than their median.
    assert all(not one.conclusive and one.speedup_low < 1.1 * speedup < one.speedup_high for one in found)
    assert all((one.speedup_low >= LatencyBudget().speedup_min) is passes for one in found)
    assert all(one.speedup == pytest.approx(speedup, rel=0.3) for one in found)


def test_a_busy_host_without_one_undisturbed_call_settles_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_release.latency.rounds.CpuWait", NeverQuietHost)
    plan, both = MeasurePlan(measure_max_s=10.0), sides(machine, endless(1, 13e-3, 0.1), endless(2, 0.01e-3, 0.1))
    served = measure(both, SAMPLE, plan, LatencyBudget())
    reported = measure(both, SAMPLE, plan.replace(measure_max_s=plan.reported_max_s))
    assert served.measured_s > 0.9 * plan.measure_max_s
    assert (served.conclusive, reported.conclusive, reported.speedup_low) == (False, False, 0.0)


def test_a_speedup_clear_of_its_limits_is_settled_in_the_shortest_time(machine: Machine) -> None:
    found = list(measurements(machine, 1.25, 0.0, 0.02))
    short = [one for one in found if one.rounds < 2 * MeasurePlan().rounds_min]
    assert len(short) > 0.9 * MEASUREMENTS
    assert all(one.conclusive and 1.0 < one.speedup_low < one.speedup_high < 1.5 for one in short)


def test_a_speedup_at_its_limit_ends_when_more_rounds_cannot_settle_it(machine: Machine) -> None:
    exact = measure(sides(machine, always(0.01), always(0.01)), SAMPLE, MeasurePlan(), LatencyBudget())
    assert not exact.conclusive
    assert exact.speedup_low < 1.0 < exact.speedup_high
    assert exact.measured_s < 3 * MeasurePlan().measure_min_s


@pytest.mark.parametrize(
    ("factor", "budget"), [(1.0, True), (1 / 20, True), (20.0, True), (1.0, False), (1 / 20, False)]
)
@pytest.mark.parametrize("seconds", [0.05e-3, 5e-3, 0.5])
def test_a_measurement_ends_within_a_tenth_after_its_time(
    machine: Machine, seconds: float, factor: float, budget: bool
) -> None:
    # More rounds than fit, so only the time ends the measurement.
    plan = MeasurePlan(rounds_min=10**9)
    reference, candidate = always(seconds * factor), always(seconds)
    limits = LatencyBudget(batch_size=1 if budget else 2)
    (measured,) = measure_all(sides(machine, reference, candidate), {1: SAMPLE}, plan, limits)
    max_s = plan.measure_max_s if budget else plan.reported_max_s
    assert machine.now == pytest.approx(measured.measured_s)
    assert 0.5 * max_s < machine.now <= 1.1 * max_s


def test_a_round_that_a_busy_host_makes_longer_than_the_others_is_left_out(machine: Machine) -> None:
    plan = MeasurePlan(rounds_min=10**9)
    # The last seconds of the time become a hundred times slower.
    slow = (5e-3 * (100.0 if machine.now > plan.measure_max_s - 1.0 else 1.0) for _ in count())
    measured = measure(sides(machine, slow, always(5e-3)), SAMPLE, plan, LatencyBudget())
    assert machine.now <= 1.02 * plan.measure_max_s
    assert measured.speedup == pytest.approx(1.0)


@pytest.mark.parametrize(("factor", "low", "high"), [(0.5, 0.4, 0.6), (2.0, 1.8, 2.2)])
def test_a_third_side_is_measured_in_the_same_rounds(machine: Machine, factor: float, low: float, high: float) -> None:
    champion = Simulated(machine, always(5e-3 * factor))
    three = dataclasses.replace(sides(machine, always(10e-3), always(5e-3)), champion=champion, champion_speed_min=0.9)
    measured = measure(three, SAMPLE, MeasurePlan(), LatencyBudget())
    assert measured.champion is not None
    assert low < measured.champion.speed_low < factor < measured.champion.speed_high < high
    assert measured.speedup == pytest.approx(2.0)
    assert measured.champion.times.p50_ms == pytest.approx(5.0 * factor)
