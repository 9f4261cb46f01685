"""Structure and logic of the measurement. No test here checks a speed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import torch

from onnx_release.latency.measure import Sides, measure, measure_all
from onnx_release.latency.rounds import Block, Round, summarize
from onnx_release.limits import CALLS_PER_ROUND_MAX, CPU_WAIT_SHARE_MAX, LatencyBudget, MeasurePlan
from onnx_release.records import BatchLatency
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.runners.pytorch import PyTorchOptions, PyTorchRunner
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays
from tests.refusals import refused

SAMPLE = Sample(name="example", inputs={"x": np.ones((4, 2), np.float32)}, batch_size=4)
QUICK = MeasurePlan(warmup_rounds=1, rounds_min=4, measure_min_s=0.0, measure_max_s=2.0, interval_width_max=0.9)


class Unknown:
    """A kernel that does not count waiting threads: every round is quiet, even on a busy host."""

    def share(self) -> None:
        return None


@pytest.fixture(autouse=True)
def _every_round_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_release.latency.rounds.CpuWait", Unknown)


class Sleeper:
    """A side that sleeps, writes into its input, and logs each change of sides.

    `seconds` are the durations of the calls, repeated in order.
    """

    def __init__(self, name: str, log: list[str], seconds: Iterable[float] = (0.002,)) -> None:
        self.name = name
        self.log = log
        self.seconds = list(seconds)
        self.calls = 0
        self.seen: set[float] = set()

    def run(self, inputs: Arrays) -> Arrays:
        if not self.log or self.log[-1] != self.name:
            self.log.append(self.name)
            self.seen.add(float(inputs["x"].max()))
        inputs["x"] += 1.0
        time.sleep(self.seconds[self.calls % len(self.seconds)])
        self.calls += 1
        return {"y": inputs["x"]}

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...


def _sleepers(reference_s: Iterable[float], candidate_s: Iterable[float]) -> tuple[Sides, Sleeper, Sleeper]:
    log: list[str] = []
    reference, candidate = Sleeper("R", log, reference_s), Sleeper("C", log, candidate_s)
    return Sides(reference=reference, candidate=candidate), reference, candidate


def _consistent(result: BatchLatency) -> None:
    assert result.speedup == pytest.approx(result.reference.p50_ms / result.candidate.p50_ms)
    assert 0 < result.speedup_low <= result.speedup <= result.speedup_high
    for side in (result.reference, result.candidate):
        assert 0 < side.p50_ms <= side.p95_ms
        assert side.throughput_per_s > 0
        assert side.cpu_p50_ms >= 0
    assert result.rounds >= 2
    assert 1 <= result.calls_per_round <= CALLS_PER_ROUND_MAX


def test_sides_change_order_with_each_round() -> None:
    sides, reference, _ = _sleepers([0.02], [0.02])
    result = measure(sides, SAMPLE, QUICK)
    # R C, C R, R C ...: the same side ends a round and begins the next one. The log has only changes of sides.
    # The warm-up is one round, and the measurement starts with R.
    changes = "".join(reference.log)
    assert changes == "RC" + ("RC" * result.rounds)[: len(changes) - 2]
    assert len(changes) == 2 + result.rounds + 1


def test_the_first_call_of_a_block_is_not_timed() -> None:
    sides, reference, candidate = _sleepers([0.03], [0.03])
    result = measure(sides, SAMPLE, QUICK)
    assert result.calls_per_round == 1
    warmup_calls = 2 * QUICK.warmup_rounds
    assert reference.calls == candidate.calls == warmup_calls + result.rounds * (1 + result.calls_per_round)


def test_a_slow_first_call_does_not_change_the_percentiles() -> None:
    # A block has two calls, and every second call is slow: the first of its block.
    sides, _, _ = _sleepers([0.15, 0.03], [0.03])
    plan = MeasurePlan(rounds_min=3, measure_min_s=0, measure_max_s=3, warmup_rounds=1)
    result = measure(sides, SAMPLE, plan)
    assert result.reference.p50_ms < 150


def test_a_side_that_writes_into_its_input_does_not_change_the_sample() -> None:
    sides, reference, candidate = _sleepers([0.005], [0.005])
    measure(sides, SAMPLE, QUICK)
    assert reference.seen | candidate.seen == {1.0}
    assert SAMPLE.inputs["x"].max() == 1.0


def test_a_clear_difference_is_conclusive() -> None:
    sides, _, _ = _sleepers([0.03], [0.01])
    plan = QUICK.replace(measure_max_s=20.0)
    result = measure(sides, SAMPLE, plan, LatencyBudget())
    _consistent(result)
    assert result.conclusive
    assert result.speedup_low > 1.0
    assert result.measured_s < plan.measure_max_s


def test_an_interval_that_contains_the_limit_is_measured_until_the_time_is_up() -> None:
    # The sides are slow in alternate rounds, so the ratio can be from 1/3 to 3.
    sides, _, _ = _sleepers([0.02, 0.02, 0.06, 0.06], [0.06, 0.06, 0.02, 0.02])
    plan = MeasurePlan(rounds_min=4, measure_min_s=0.0, measure_max_s=1.2, interval_width_max=99)
    undecided = measure(sides, SAMPLE, plan, LatencyBudget())
    _consistent(undecided)
    assert not undecided.conclusive
    round_s = 2 * (0.02 + 0.06)
    assert plan.measure_max_s - 2 * round_s < undecided.measured_s <= 1.1 * plan.measure_max_s
    reported = measure(sides, SAMPLE, plan, None)
    assert reported.conclusive
    assert reported.rounds == plan.rounds_min


def test_too_few_rounds_in_the_time_are_not_conclusive() -> None:
    sides, _, _ = _sleepers([0.06], [0.03])
    plan = MeasurePlan(rounds_min=1000, measure_min_s=0.0, measure_max_s=0.8)
    result = measure(sides, SAMPLE, plan, LatencyBudget())
    assert 2 <= result.rounds < 1000
    assert not result.conclusive


def test_a_wide_interval_is_not_conclusive() -> None:
    sides, _, _ = _sleepers([0.01, 0.03, 0.06, 0.02], [0.005])
    plan = MeasurePlan(rounds_min=3, measure_min_s=0, measure_max_s=0.5, interval_width_max=1e-9)
    assert not measure(sides, SAMPLE, plan).conclusive


@pytest.mark.parametrize("outputs", [{}, {"y": np.ones((0, 2))}])
def test_outputs_without_values_are_refused(outputs: Arrays) -> None:
    class Silent(Sleeper):
        def run(self, inputs: Arrays) -> Arrays:
            return outputs

    sides = Sides(reference=Sleeper("R", []), candidate=Silent("C", []))
    with refused("no_output_values", "The output of C"):
        measure(sides, SAMPLE, QUICK)


def test_percentiles_and_throughput_use_every_timed_call() -> None:
    blocks = [Block(wall_s=(0.001, 0.002), cpu_s=0.004), Block(wall_s=(0.003, 0.010), cpu_s=0.002)]
    side = summarize(blocks, batch_size=8)
    assert side.p50_ms == pytest.approx(2.5)
    assert side.p95_ms == pytest.approx(np.quantile([1, 2, 3, 10], 0.95))
    assert side.cpu_p50_ms == pytest.approx(3.0)
    assert side.throughput_per_s == pytest.approx(8 / 0.004)


def test_two_real_runners_give_consistent_results(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)).eval()
    path = tmp_path / "model.onnx"
    shapes = {"input": {0: torch.export.Dim("batch")}}
    torch.onnx.export(
        model,
        (torch.ones(2, 64),),
        path,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )
    generator = np.random.default_rng(0)
    samples = {
        size: Sample(name="s", inputs={"x": generator.standard_normal((size, 64), np.float32)}, batch_size=size)
        for size in (4, 1)
    }
    options = PyTorchOptions(input_names=("x",), output_names=("y",), threads=1)
    with (
        PyTorchRunner(model, options) as reference,
        OnnxRuntimeRunner(path, OnnxRuntimeOptions(threads=1)) as candidate,
    ):
        results = measure_all(Sides(reference=reference, candidate=candidate), samples, QUICK, LatencyBudget())
    assert [result.batch_size for result in results] == [1, 4]
    for result in results:
        _consistent(result)
        assert result.rounds >= QUICK.rounds_min


@pytest.mark.parametrize(("share", "quiet"), [(None, True), (0.0, True), (CPU_WAIT_SHARE_MAX, True), (0.5, False)])
def test_a_round_that_waited_for_a_cpu_is_disturbed(share: float | None, quiet: bool) -> None:
    block = Block(wall_s=(0.001,), cpu_s=0.001)
    assert Round(blocks=(block, block), cpu_wait_share=share).is_quiet is quiet


class Stolen:
    """A replacement of the kernel's count: every second round of the measurement is disturbed."""

    made = 0

    def __init__(self) -> None:
        Stolen.made += 1
        self.number = Stolen.made

    def share(self) -> float:
        return 0.5 if self.number % 2 else 0.01


def test_disturbed_rounds_are_dropped_for_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_release.latency.rounds.CpuWait", Stolen)
    monkeypatch.setattr(Stolen, "made", -QUICK.warmup_rounds)
    # A block has two calls, and the first round is the warm-up: PyTorch is slow in odd rounds.
    sides, _, _ = _sleepers([0.02, 0.02, 0.2, 0.2], [0.02])
    plan = QUICK.replace(measure_max_s=20.0)
    result = measure(sides, SAMPLE, plan)
    assert result.rounds >= plan.rounds_min
    assert abs(result.rounds - result.rounds_disturbed) <= 1
    assert result.cpu_wait_share == pytest.approx(0.01)
    assert result.conclusive
    assert result.reference.p50_ms < 200


def test_with_too_few_quiet_rounds_all_rounds_are_kept_and_the_result_is_not_conclusive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("onnx_release.latency.rounds.CpuWait", Stolen)
    monkeypatch.setattr(Stolen, "share", lambda _: 0.5)
    sides, _, _ = _sleepers([0.02], [0.02])
    result = measure(sides, SAMPLE, QUICK.replace(measure_max_s=0.8))
    assert result.rounds == result.rounds_disturbed
    assert result.cpu_wait_share == 0.5
    assert not result.conclusive
