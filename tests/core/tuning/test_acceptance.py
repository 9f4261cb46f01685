"""Acceptance test by outputs and by the task metric, and the rules of the race."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_release.benchmark.setup import BenchmarkOptions, BenchmarkSetup
from onnx_release.errors import SampleRefused, TuningRefused
from onnx_release.latency.statistics import Interval
from onnx_release.limits import MODEL_FILE, ParityLimits
from onnx_release.parity.task_metrics import EvaluationSample, TaskMetric, read_evaluation_sample
from onnx_release.records import Precision, SideLatency, TensorSpec
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.samples.sample import Sample
from onnx_release.tuning.acceptance import AcceptanceTest
from onnx_release.tuning.race import Race, Timing, find_slower, select_fastest
from onnx_release.tuning.variants import PLAIN_EXPORT
from tests.core.tuning.tuned_models import BENCHMARK, QUICK, Scaled, export, rows
from tests.refusals import refused

INPUTS = (TensorSpec(name="x", dtype="float32", shape=("batch", 4, 64)),)
OUTPUTS = (TensorSpec(name="y", dtype="float32", shape=("batch", 3)),)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkSetup:
    trained, folder, artifact = export(tmp_path_factory.mktemp("acceptance"))
    return BenchmarkSetup.load(trained, folder, artifact, BENCHMARK)


def acceptance_of(setup: BenchmarkSetup, evaluation: EvaluationSample | None = None, **changes: Any) -> AcceptanceTest:
    acceptance = AcceptanceTest(artifact=setup.artifact, evaluation=evaluation, **changes)
    with setup.reference(mha_fastpath=False) as reference:
        acceptance.run_reference(reference, setup.samples())
    return acceptance


def spoiled(setup: BenchmarkSetup, folder: Path, factor: float) -> OnnxRuntimeRunner:
    """Open the model with the weights of its last layer multiplied."""
    model = onnx.load(setup.folder / MODEL_FILE)
    last = next(tensor for tensor in model.graph.initializer if tensor.name == "last.weight")
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) * np.float32(factor), last.name))
    onnx.save(model, folder / MODEL_FILE)
    return OnnxRuntimeRunner(folder / MODEL_FILE, OnnxRuntimeOptions())


@pytest.mark.parametrize(("factor", "exact", "int8"), [(1.0, True, True), (1.01, False, True), (1.2, False, False)])
def test_each_precision_has_its_own_limits(
    setup: BenchmarkSetup, tmp_path: Path, factor: float, exact: bool, int8: bool
) -> None:
    acceptance = acceptance_of(setup)
    with spoiled(setup, tmp_path, factor) as runner:
        passed = [
            not acceptance.run(runner, BENCHMARK.limits_for(precision)).reasons
            for precision in (Precision.EXACT, Precision.INT8)
        ]
    assert passed == [exact, int8]


def test_precision_limits_replace_the_defaults_of_a_precision() -> None:
    options = BenchmarkOptions(
        precision_limits={"int8": {"cosine_min": 0.9, "per_output": {"y": {"sqnr_min_db": 50.0}}}}
    )
    found = options.limits_for(Precision.INT8)
    assert (found.cosine_min, found.sqnr_min_db, found.per_output) == (0.9, 20.0, {"y": {"sqnr_min_db": 50.0}})
    assert options.limits_for(Precision.EXACT) == ParityLimits()
    with refused("unknown_precision", "'int4'"):
        BenchmarkOptions(precision_limits={"int4": {}}).limits_for(Precision.INT8)


def evaluation_of(setup: BenchmarkSetup, folder: Path, count: int = 20) -> EvaluationSample:
    """Write and read a sample with targets that differ from the model's outputs by 0.1."""
    with setup.candidate() as runner:
        answers = runner.run({"x": rows(count, 5)})["y"]
    np.savez(folder / "sample.npz", **{"x": rows(count, 5), "target.y": answers + np.float32(0.1)})  # type: ignore[arg-type]
    return read_evaluation_sample(folder / "sample.npz", INPUTS, OUTPUTS)


def test_a_variant_with_a_worse_task_metric_is_refused(setup: BenchmarkSetup, tmp_path: Path) -> None:
    acceptance = acceptance_of(setup, evaluation_of(setup, tmp_path), metric_loss_max=0.01)
    assert acceptance.task_metrics["y"] == pytest.approx(0.1, rel=1e-3)
    with spoiled(setup, tmp_path, 1.02) as runner:
        result = acceptance.run(runner, BENCHMARK.limits_for(Precision.INT8))
    assert len(result.reasons) == 1
    assert "MAE of 'y' on the evaluation sample" in result.reasons[0]
    assert "more than 1.00%" in result.reasons[0]
    with setup.candidate() as runner:
        assert acceptance.run(runner, BENCHMARK.limits_for(Precision.EXACT)).reasons == ()


def test_calibration_rows_are_not_used_for_the_metric(setup: BenchmarkSetup, tmp_path: Path) -> None:
    whole = evaluation_of(setup, tmp_path)
    seen, rest = whole.split()
    assert seen is not None
    assert (len(seen["x"]), rest.rows, len(rest.targets["y"])) == (10, 10, 10)
    np.testing.assert_array_equal(np.concatenate([seen["x"], rest.inputs["x"]]), whole.inputs["x"])
    small = dataclasses.replace(whole, rows=7)
    assert small.split() == (None, small)


@pytest.mark.parametrize(
    ("shape", "target", "dtype", "metric"),
    [
        (("batch", 3), (5, 3), "float32", TaskMetric(name="MAE")),
        (("batch", 3), (5,), "int64", TaskMetric(name="accuracy", axis=1)),
        (("batch", 3, 8, 8), (5, 8, 8), "int64", TaskMetric(name="accuracy", axis=1)),
        (("batch", 7, 3), (5, 7), "int64", TaskMetric(name="accuracy", axis=2)),
    ],
)
def test_dtype_and_shape_of_a_target_select_its_metric(
    tmp_path: Path, shape: Any, target: Any, dtype: str, metric: TaskMetric
) -> None:
    arrays: dict[str, Any] = {"x": rows(5), "target.y": np.zeros(target, dtype)}
    np.savez(tmp_path / "sample.npz", **arrays)
    outputs = (TensorSpec(name="y", dtype="float32", shape=shape),)
    assert read_evaluation_sample(tmp_path / "sample.npz", INPUTS, outputs).metrics == {"y": metric}


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"x": rows(5)}, "no array named target"),
        ({"x": rows(5), "target.z": np.zeros((5, 3))}, "'z', which is not an output"),
        ({"x": rows(5), "target.y": np.zeros((4, 3))}, "one row for each of the 5"),
        ({"x": rows(5), "target.y": np.zeros((5, 2))}, "does not fit"),
        ({"x": rows(5), "target.y": np.full((5, 3), np.nan)}, "NaN"),
        ({"x": rows(5), "target.y": np.zeros((5, 9), int)}, "without its classes"),
        ({"x": rows(5), "target.y": np.array(["a"] * 5)}, "neither floats nor integers"),
    ],
)
def test_targets_that_do_not_fit_are_refused(tmp_path: Path, arrays: Any, problem: str) -> None:
    np.savez(tmp_path / "sample.npz", **arrays)
    with refused("target_mismatch", problem) as caught:
        read_evaluation_sample(tmp_path / "sample.npz", INPUTS, OUTPUTS)
    assert isinstance(caught.value, TuningRefused)


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "sample.npz", **{"target.y": np.zeros((5, 3))})  # type: ignore[arg-type]
    with refused("example_mismatch", "x") as caught:
        read_evaluation_sample(tmp_path / "sample.npz", INPUTS, OUTPUTS)
    assert isinstance(caught.value, SampleRefused)


def test_accuracy_counts_right_classes_and_nan_is_never_right(setup: BenchmarkSetup) -> None:
    specs = {"specs": INPUTS, "rows": 4, "inputs": {"x": rows(4)}}
    with setup.candidate() as runner:
        classes = runner.run({"x": rows(4)})["y"].argmax(axis=1)
        metrics = {"y": TaskMetric(name="accuracy", axis=1)}
        wrong = EvaluationSample(targets={"y": np.where([True, False] * 2, classes, -1)}, metrics=metrics, **specs)  # type: ignore[arg-type]
        assert wrong.measure(runner) == {"y": 0.5}
    assert TaskMetric(name="accuracy").loss(0.5, 0.4) == pytest.approx(0.2)
    assert TaskMetric(name="MAE").loss(0.5, 0.4) < 0
    assert not TaskMetric(name="MAE").loss(0.5, float("nan")) <= 0.01


def timing(low: float, value: float, high: float, rounds: int = 40) -> Timing:
    interval = Interval(value=value, low=low, high=high, confidence=0.95)
    side = SideLatency(p50_ms=1.0, p95_ms=1.0, cpu_p50_ms=1.0, throughput_per_s=1.0, quantiles_ms=(1.0,) * 9)
    return Timing(side=side, speedup=interval, strict_speedup=interval, rounds=rounds)


RANKS = {"exact": (0, 0), "fused": (0, 2), "int8": (2, 6)}


@pytest.mark.parametrize(
    ("timings", "fastest"),
    [
        ({"exact": timing(0.98, 1.01, 1.04), "int8": timing(0.9, 1.3, 1.7)}, None),
        ({"exact": timing(1.01, 1.05, 1.09), "int8": timing(1.8, 2.0, 2.2)}, "int8"),
        ({"exact": timing(1.8, 1.9, 2.1), "int8": timing(1.8, 2.0, 2.2)}, "exact"),
        ({"fused": timing(1.1, 1.2, 1.3), "exact": timing(1.1, 1.15, 1.2)}, "exact"),
        ({"int8": timing(1.8, 2.0, 2.2, rounds=9)}, None),
        # Within the interval of the fastest, but not clearly faster than the plain export.
        ({"exact": timing(0.9, 1.9, 2.5), "int8": timing(1.8, 2.0, 2.2)}, "int8"),
    ],
)
def test_the_fastest_is_clearly_faster_and_the_most_exact_of_equals(timings: Any, fastest: str | None) -> None:
    assert select_fastest(timings, RANKS) == fastest


def test_clearly_slower_variants_are_eliminated() -> None:
    timings = {"a": timing(1.8, 2.0, 2.2), "b": timing(1.1, 1.2, 1.3), "c": timing(1.0, 1.1, 1.2, rounds=3)}
    assert list(find_slower(timings)) == ["b"]


@pytest.mark.alone
def test_an_elimination_finds_the_slower_of_two_models(setup: BenchmarkSetup, tmp_path: Path) -> None:
    _, folder, slow = export(tmp_path, Scaled(hidden=16384))
    sample = Sample(name="example", inputs={"x": rows(1)}, batch_size=1)
    race = Race(baseline=PLAIN_EXPORT.name, sample=sample, plan=QUICK)
    with setup.candidate() as plain, OnnxRuntimeRunner(folder / MODEL_FILE, OnnxRuntimeOptions(threads=1)) as slower:
        timings = race.run_elimination({PLAIN_EXPORT.name: plain, "slow": slower}, seconds=2.0)
    assert slow.size_bytes > 20 * setup.artifact.size_bytes
    assert timings["slow"].is_slower
    assert timings["slow"].speedup.value < 0.5
    assert (timings[PLAIN_EXPORT.name].speedup.low, timings[PLAIN_EXPORT.name].speedup.high) == (1.0, 1.0)
