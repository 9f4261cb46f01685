"""Who may be shipped: the gate by outputs and by the run's own metric, and the contest's rules."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_release.benchmark.setup import BenchmarkOptions, BenchmarkSetup
from onnx_release.errors import Refused
from onnx_release.latency.statistics import Interval
from onnx_release.limits import MODEL_FILE, ParityLimits
from onnx_release.records import OnnxArtifact, Precision, SideLatency, TensorSpec
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.samples.sample import Sample
from onnx_release.tuning.acceptance import AcceptanceTest
from onnx_release.tuning.candidates import PLAIN
from onnx_release.tuning.race import Race, Timing, outrun, winner
from onnx_release.tuning.task_metrics import Evaluation, Metric, read_evaluation
from tests.core.tuning.tuned_models import JUDGE, QUICK, Scaled, export, rows

INPUTS = (TensorSpec(name="x", dtype="float32", shape=("batch", 4, 64)),)
OUTPUTS = (TensorSpec(name="y", dtype="float32", shape=("batch", 3)),)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkSetup:
    trained, folder, artifact = export(tmp_path_factory.mktemp("gate"))
    return BenchmarkSetup.load(trained, folder, artifact, JUDGE)


def gate_of(subject: BenchmarkSetup, evaluation: Evaluation | None = None, **changes: Any) -> AcceptanceTest:
    gate = AcceptanceTest(artifact=subject.artifact, evaluation=evaluation, **changes)
    with subject.reference(mha_fastpath=False) as reference:
        gate.run_reference(reference, subject.samples())
    return gate


def spoiled(subject: BenchmarkSetup, folder: Path, factor: float) -> OnnxRuntimeRunner:
    """Open the model with the weights of its last layer multiplied."""
    model = onnx.load(subject.folder / MODEL_FILE)
    last = next(tensor for tensor in model.graph.initializer if tensor.name == "last.weight")
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) * np.float32(factor), last.name))
    onnx.save(model, folder / MODEL_FILE)
    return OnnxRuntimeRunner(folder / MODEL_FILE, OnnxRuntimeOptions())


@pytest.mark.parametrize(("factor", "exact", "int8"), [(1.0, True, True), (1.01, False, True), (1.2, False, False)])
def test_each_precision_is_held_to_its_own_limits(
    subject: BenchmarkSetup, tmp_path: Path, factor: float, exact: bool, int8: bool
) -> None:
    gate = gate_of(subject)
    with spoiled(subject, tmp_path, factor) as runner:
        passed = [
            not gate.judge(runner, JUDGE.limits_for(precision)).reasons
            for precision in (Precision.EXACT, Precision.INT8)
        ]
    assert passed == [exact, int8]


def test_given_limits_replace_a_precisions_own() -> None:
    given = BenchmarkOptions(precision_limits={"int8": {"cosine_min": 0.9, "per_output": {"y": {"sqnr_min_db": 50.0}}}})
    found = given.limits_for("int8")
    assert (found.cosine_min, found.sqnr_min_db, found.per_output) == (0.9, 26.0, {"y": {"sqnr_min_db": 50.0}})
    assert given.limits_for(Precision.EXACT) == ParityLimits()
    with pytest.raises(Refused, match="'int4'"):
        BenchmarkOptions(precision_limits={"int4": {}}).limits_for("int8")


def evaluation_of(subject: BenchmarkSetup, folder: Path, count: int = 20) -> Evaluation:
    """Write and read a sample whose targets are the model's own answers, and a little."""
    with subject.candidate() as runner:
        answers = runner.run({"x": rows(count, 5)})["y"]
    np.savez(folder / "sample.npz", **{"x": rows(count, 5), "target.y": answers + np.float32(0.1)})  # type: ignore[arg-type]
    return read_evaluation(folder / "sample.npz", INPUTS, OUTPUTS)


def test_a_candidate_that_is_worse_at_its_task_is_refused(subject: BenchmarkSetup, tmp_path: Path) -> None:
    gate = gate_of(subject, evaluation_of(subject, tmp_path), metric_loss_max=0.01)
    assert gate.task_metrics["y"] == pytest.approx(0.1, rel=1e-3)
    with spoiled(subject, tmp_path, 1.02) as runner:
        passage = gate.judge(runner, JUDGE.limits_for("int8"))
    assert len(passage.reasons) == 1
    assert "MAE of 'y' on the evaluation sample" in passage.reasons[0]
    assert "more than 1.00%" in passage.reasons[0]
    with subject.candidate() as runner:
        assert gate.judge(runner, JUDGE.limits_for(Precision.EXACT)).reasons == ()


def test_rows_that_calibrate_do_not_measure(subject: BenchmarkSetup, tmp_path: Path) -> None:
    whole = evaluation_of(subject, tmp_path)
    seen, rest = whole.divided()
    assert seen is not None
    assert (len(seen["x"]), rest.rows, len(rest.targets["y"])) == (10, 10, 10)
    np.testing.assert_array_equal(np.concatenate([seen["x"], rest.inputs["x"]]), whole.inputs["x"])
    small = dataclasses.replace(whole, rows=7)
    assert small.divided() == (None, small)


@pytest.mark.parametrize(
    ("shape", "target", "dtype", "metric"),
    [
        (("batch", 3), (5, 3), "float32", Metric(name="MAE")),
        (("batch", 3), (5,), "int64", Metric(name="accuracy", axis=1)),
        (("batch", 3, 8, 8), (5, 8, 8), "int64", Metric(name="accuracy", axis=1)),
        (("batch", 7, 3), (5, 7), "int64", Metric(name="accuracy", axis=2)),
    ],
)
def test_a_target_says_what_it_is_measured_by(
    tmp_path: Path, shape: Any, target: Any, dtype: str, metric: Metric
) -> None:
    arrays: dict[str, Any] = {"x": rows(5), "target.y": np.zeros(target, dtype)}
    np.savez(tmp_path / "sample.npz", **arrays)
    outputs = (TensorSpec(name="y", dtype="float32", shape=shape),)
    assert read_evaluation(tmp_path / "sample.npz", INPUTS, outputs).metrics == {"y": metric}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": rows(5)}, "no array called target"),
        ({"x": rows(5), "target.z": np.zeros((5, 3))}, "'z', which is no output"),
        ({"x": rows(5), "target.y": np.zeros((4, 3))}, "one row for each of the 5"),
        ({"x": rows(5), "target.y": np.zeros((5, 2))}, "does not fit"),
        ({"x": rows(5), "target.y": np.full((5, 3), np.nan)}, "NaN"),
        ({"x": rows(5), "target.y": np.zeros((5, 9), int)}, "without its classes"),
        ({"x": rows(5), "target.y": np.array(["a"] * 5)}, "neither floats nor integers"),
        ({"target.y": np.zeros((5, 3))}, "lacks the input x"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(tmp_path: Path, arrays: Any, words: str) -> None:
    np.savez(tmp_path / "sample.npz", **arrays)
    with pytest.raises(Refused, match=words):
        read_evaluation(tmp_path / "sample.npz", INPUTS, OUTPUTS)


def test_accuracy_counts_what_is_right_and_never_nan(subject: BenchmarkSetup) -> None:
    specs = {"specs": INPUTS, "rows": 4, "inputs": {"x": rows(4)}}
    with subject.candidate() as runner:
        classes = runner.run({"x": rows(4)})["y"].argmax(axis=1)
        metrics = {"y": Metric(name="accuracy", axis=1)}
        wrong = Evaluation(targets={"y": np.where([True, False] * 2, classes, -1)}, metrics=metrics, **specs)  # type: ignore[arg-type]
        assert wrong.measure(runner) == {"y": 0.5}
    assert Metric(name="accuracy").loss(0.5, 0.4) == pytest.approx(0.2)
    assert Metric(name="MAE").loss(0.5, 0.4) < 0
    assert not Metric(name="MAE").loss(0.5, float("nan")) <= 0.01


def timing(low: float, value: float, high: float, rounds: int = 40) -> Timing:
    interval = Interval(value=value, low=low, high=high, confidence=0.95)
    side = SideLatency(p50_ms=1.0, p95_ms=1.0, cpu_p50_ms=1.0, throughput_per_s=1.0)
    return Timing(side=side, speedup=interval, decisive=interval, rounds=rounds)


RANKS = {"exact": (0, 0), "fused": (0, 2), "int8": (2, 6)}


@pytest.mark.parametrize(
    ("timings", "won"),
    [
        ({"exact": timing(0.98, 1.01, 1.04), "int8": timing(0.9, 1.3, 1.7)}, None),
        ({"exact": timing(1.01, 1.05, 1.09), "int8": timing(1.8, 2.0, 2.2)}, "int8"),
        ({"exact": timing(1.8, 1.9, 2.1), "int8": timing(1.8, 2.0, 2.2)}, "exact"),
        ({"fused": timing(1.1, 1.2, 1.3), "exact": timing(1.1, 1.15, 1.2)}, "exact"),
        ({"int8": timing(1.8, 2.0, 2.2, rounds=9)}, None),
        # Level with the fastest, and not itself clear of the plain export.
        ({"exact": timing(0.9, 1.9, 2.5), "int8": timing(1.8, 2.0, 2.2)}, "int8"),
    ],
)
def test_the_winner_is_clearly_faster_and_of_equals_the_most_exact(timings: Any, won: str | None) -> None:
    assert winner(timings, RANKS) == won


def test_the_clearly_slower_ones_drop_out() -> None:
    timings = {"a": timing(1.8, 2.0, 2.2), "b": timing(1.1, 1.2, 1.3), "c": timing(1.0, 1.1, 1.2, rounds=3)}
    assert list(outrun(timings)) == ["b"]


@pytest.mark.alone
def test_a_heat_finds_the_slower_of_two_models(subject: BenchmarkSetup, tmp_path: Path) -> None:
    _, folder, artifact = export(tmp_path, Scaled(hidden=16384))
    slow: OnnxArtifact = artifact
    sample = Sample(name="example", inputs={"x": rows(1)}, batch_size=1)
    contest = Race(baseline=PLAIN, sample=sample, plan=QUICK)
    with subject.candidate() as plain, OnnxRuntimeRunner(folder / MODEL_FILE, OnnxRuntimeOptions(threads=1)) as rival:
        timings = contest.heat({PLAIN: plain, "slow": rival}, seconds=2.0)
    assert slow.size_bytes > 20 * subject.artifact.size_bytes
    assert timings["slow"].slower
    assert timings["slow"].speedup.value < 0.5
    assert (timings[PLAIN].speedup.low, timings[PLAIN].speedup.high) == (1.0, 1.0)
