"""Structure and logic only: no test says how fast anything is."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import torch

from onnx_release.errors import Refused
from onnx_release.latency.measure import Block, Round, Sides, is_quiet, measure, measure_all, summarise
from onnx_release.limits import CALLS_PER_ROUND_MAX, CPU_WAIT_SHARE_MAX, MeasurePlan
from onnx_release.records import BatchLatency
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.runners.pytorch import PyTorchOptions, PyTorchRunner
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

SAMPLE = Sample(name="example", inputs={"x": np.ones((4, 2), np.float32)}, batch_size=4)
QUICK = MeasurePlan(
    warmup_rounds=1, rounds_min=4, measure_min_s=0.0, measure_max_s=2.0, bootstrap_samples=200, interval_width_max=0.9
)


class Unknown:
    """A kernel that does not count how long threads wait: every round counts, however busy the tests' host is."""

    def share(self) -> None:
        return None


@pytest.fixture(autouse=True)
def _every_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_release.latency.measure.CpuWait", Unknown)


class Sleeper:
    """A side that takes the given times by turns, writes into its input, and keeps a diary of calls."""

    def __init__(self, name: str, diary: list[str], seconds: Iterable[float] = (0.002,)) -> None:
        self.name = name
        self.diary = diary
        self.seconds = list(seconds)
        self.calls = 0
        self.seen: set[float] = set()

    def run(self, inputs: Arrays) -> Arrays:
        if not self.diary or self.diary[-1] != self.name:
            self.diary.append(self.name)
            self.seen.add(float(inputs["x"].max()))
        inputs["x"] += 1.0
        time.sleep(self.seconds[self.calls % len(self.seconds)])
        self.calls += 1
        return {"y": inputs["x"]}

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...


def _sleepers(torch_s: Iterable[float], ort_s: Iterable[float]) -> tuple[Sides, Sleeper, Sleeper]:
    diary: list[str] = []
    one, other = Sleeper("T", diary, torch_s), Sleeper("O", diary, ort_s)
    return Sides(torch=one, onnxruntime=other), one, other


def _consistent(result: BatchLatency) -> None:
    assert result.speedup == pytest.approx(result.torch.p50_ms / result.onnxruntime.p50_ms)
    assert 0 < result.speedup_low <= result.speedup <= result.speedup_high
    for side in (result.torch, result.onnxruntime):
        assert 0 < side.p50_ms <= side.p95_ms
        assert side.throughput_per_s > 0
        assert side.cpu_p50_ms >= 0
    assert result.rounds >= 2
    assert 1 <= result.calls_per_round <= CALLS_PER_ROUND_MAX


def test_sides_change_order_with_each_round() -> None:
    sides, one, _ = _sleepers([0.02], [0.02])
    result = measure(sides, SAMPLE, QUICK)
    # T O, O T, T O ...: the same side ends a round and begins the next, and the diary notes a change of sides only.
    # The warm-up is one round, and the measuring begins again with T.
    turns = "".join(one.diary)
    assert turns == "TO" + ("TO" * result.rounds)[: len(turns) - 2]
    assert len(turns) == 2 + result.rounds + 1


def test_each_block_begins_with_a_call_that_is_not_timed() -> None:
    sides, one, other = _sleepers([0.03], [0.03])
    result = measure(sides, SAMPLE, QUICK)
    assert result.calls_per_round == 1
    warmup_calls = 2 * QUICK.warmup_rounds
    assert one.calls == other.calls == warmup_calls + result.rounds * (1 + result.calls_per_round)


def test_a_first_call_that_pays_for_the_switch_is_not_in_the_figures() -> None:
    # Every second call is slow, and every second call is the first of its block.
    sides, _, _ = _sleepers([0.15, 0.03], [0.03])
    plan = MeasurePlan(rounds_min=3, measure_min_s=0, measure_max_s=3, warmup_rounds=1, bootstrap_samples=100)
    result = measure(sides, SAMPLE, plan)
    assert result.torch.p50_ms < 150


def test_no_side_sees_what_the_other_wrote_into_the_input() -> None:
    sides, one, other = _sleepers([0.005], [0.005])
    measure(sides, SAMPLE, QUICK)
    assert one.seen | other.seen == {1.0}
    assert SAMPLE.inputs["x"].max() == 1.0


def test_a_clear_difference_is_conclusive_on_its_side_of_the_limit() -> None:
    sides, _, _ = _sleepers([0.03], [0.01])
    plan = QUICK.replace(measure_max_s=20.0)
    result = measure(sides, SAMPLE, plan, 1.0)
    _consistent(result)
    assert result.conclusive
    assert result.speedup_low > 1.0
    assert result.measured_s < plan.measure_max_s


def test_sides_that_cannot_be_told_apart_are_measured_until_the_time_is_up() -> None:
    # Each side is slow in every second round, the other in the rest: the ratio can be anything from 1/3 to 3.
    sides, _, _ = _sleepers([0.02, 0.02, 0.06, 0.06], [0.06, 0.06, 0.02, 0.02])
    plan = MeasurePlan(rounds_min=4, measure_min_s=0.0, measure_max_s=1.2, bootstrap_samples=200, interval_width_max=99)
    undecided = measure(sides, SAMPLE, plan, 1.0)
    _consistent(undecided)
    assert not undecided.conclusive
    assert undecided.measured_s >= plan.measure_max_s
    reported = measure(sides, SAMPLE, plan, None)
    assert reported.conclusive
    assert reported.rounds == plan.rounds_min


def test_too_few_rounds_in_the_time_are_not_conclusive() -> None:
    sides, _, _ = _sleepers([0.06], [0.03])
    plan = MeasurePlan(rounds_min=1000, measure_min_s=0.0, measure_max_s=0.4, bootstrap_samples=200)
    result = measure(sides, SAMPLE, plan, 1.0)
    assert 2 <= result.rounds < 1000
    assert not result.conclusive


def test_a_wide_interval_is_not_conclusive() -> None:
    sides, _, _ = _sleepers([0.01, 0.03, 0.06, 0.02], [0.005])
    plan = MeasurePlan(rounds_min=3, measure_min_s=0, measure_max_s=0.5, bootstrap_samples=200, interval_width_max=1e-9)
    assert not measure(sides, SAMPLE, plan).conclusive


@pytest.mark.parametrize("outputs", [{}, {"y": np.ones((0, 2))}])
def test_a_side_without_values_is_not_timed(outputs: Arrays) -> None:
    class Silent(Sleeper):
        def run(self, inputs: Arrays) -> Arrays:
            return outputs

    sides = Sides(torch=Sleeper("T", []), onnxruntime=Silent("O", []))
    with pytest.raises(Refused, match="O's outputs: hold no values"):
        measure(sides, SAMPLE, QUICK)


def test_figures_come_from_every_timed_call() -> None:
    blocks = [Block(wall_s=(0.001, 0.002), cpu_s=0.004), Block(wall_s=(0.003, 0.010), cpu_s=0.002)]
    side = summarise(blocks, batch_size=8)
    assert side.p50_ms == pytest.approx(2.5)
    assert side.p95_ms == pytest.approx(np.quantile([1, 2, 3, 10], 0.95))
    assert side.cpu_p50_ms == pytest.approx(3.0)
    assert side.throughput_per_s == pytest.approx(8 / 0.004)


def test_two_real_sides_give_consistent_figures(tmp_path: Path) -> None:
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
        results = measure_all(Sides(torch=reference, onnxruntime=candidate), samples, QUICK, {1: 1.0})
    assert [result.batch_size for result in results] == [1, 4]
    for result in results:
        _consistent(result)
        assert result.rounds >= QUICK.rounds_min


@pytest.mark.parametrize(("share", "quiet"), [(None, True), (0.0, True), (CPU_WAIT_SHARE_MAX, True), (0.5, False)])
def test_a_round_in_which_others_had_the_cpu_is_disturbed(share: float | None, quiet: bool) -> None:
    block = Block(wall_s=(0.001,), cpu_s=0.001)
    assert is_quiet(Round(torch=block, onnxruntime=block, cpu_wait_share=share)) is quiet


class Stolen:
    """A stand-in for the kernel's count: every second round from the start of the measuring was disturbed."""

    made = 0

    def __init__(self) -> None:
        Stolen.made += 1
        self.number = Stolen.made

    def share(self) -> float:
        return 0.5 if self.number % 2 else 0.01


def test_disturbed_rounds_are_left_out_of_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_release.latency.measure.CpuWait", Stolen)
    monkeypatch.setattr(Stolen, "made", -QUICK.warmup_rounds)
    # A block is two calls, and the first round is the warm-up: odd rounds take long on PyTorch's side.
    sides, _, _ = _sleepers([0.02, 0.02, 0.2, 0.2], [0.02])
    plan = QUICK.replace(measure_max_s=20.0)
    result = measure(sides, SAMPLE, plan)
    assert result.rounds >= plan.rounds_min
    assert abs(result.rounds - result.rounds_disturbed) <= 1
    assert result.cpu_wait_share == pytest.approx(0.01)
    assert result.conclusive
    assert result.torch.p50_ms < 200


def test_too_few_undisturbed_rounds_leave_all_of_them_and_the_share_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_release.latency.measure.CpuWait", Stolen)
    monkeypatch.setattr(Stolen, "share", lambda _: 0.5)
    sides, _, _ = _sleepers([0.02], [0.02])
    result = measure(sides, SAMPLE, QUICK.replace(measure_max_s=0.8))
    assert result.rounds == result.rounds_disturbed
    assert result.cpu_wait_share == 0.5
    assert not result.conclusive
