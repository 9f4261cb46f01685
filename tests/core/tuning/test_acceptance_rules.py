"""Rules of the acceptance test, on graphs of two operators that stand for PyTorch's model and its variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_release.errors import RunnerRefused
from onnx_release.limits import ParityLimits
from onnx_release.parity.task_metrics import EvaluationSample, TaskMetric
from onnx_release.records import TensorSpec
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.samples.sample import Sample
from onnx_release.tuning.acceptance import AcceptanceTest
from tests.core import records

INPUTS = (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),)
OUTPUTS = (
    TensorSpec(name="y", dtype="float32", shape=("batch", 4)),
    TensorSpec(name="positive", dtype="bool", shape=("batch", 4)),
)
ARTIFACT = records.artifact(inputs=INPUTS, outputs=OUTPUTS)
VALUES = np.linspace(-1.0, 1.0, 32, dtype=np.float32).reshape(8, 4)
SAMPLES = [Sample(name="example", inputs={"x": VALUES[:size]}, batch_size=size) for size in (2, 3)]
LOOSE = ParityLimits(mae_max=None, sqnr_min_db=None, cosine_min=0.9)


def runner(folder: Path, factor: float, rows: int | str = "batch") -> OnnxRuntimeRunner:
    """Open a graph with `y = factor * x`, and `positive = y > 0`."""
    nodes = [helper.make_node("Mul", ["x", "factor"], ["y"]), helper.make_node("Greater", ["y", "zero"], ["positive"])]
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in (("factor", factor), ("zero", 0.0))
    ]
    types = {"x": TensorProto.FLOAT, "y": TensorProto.FLOAT, "positive": TensorProto.BOOL}
    infos = {name: helper.make_tensor_value_info(name, kind, [rows, 4]) for name, kind in types.items()}
    graph = helper.make_graph(nodes, "graph", [infos["x"]], [infos["y"], infos["positive"]], constants)
    path = folder / f"{factor}-{rows}.onnx"
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    return OnnxRuntimeRunner(path, OnnxRuntimeOptions(threads=1))


def evaluation(*, off: float) -> EvaluationSample:
    """Return eight rows with targets that are `off` from the values: the metric of the graph with factor 1."""
    return EvaluationSample(
        inputs={"x": VALUES},
        targets={"y": VALUES - np.float32(off)},
        metrics={"y": TaskMetric(name="MAE")},
        specs=INPUTS,
        rows=len(VALUES),
    )


def acceptance(folder: Path, sample: EvaluationSample | None = None, **changes: Any) -> AcceptanceTest:
    test = AcceptanceTest(artifact=ARTIFACT, evaluation=sample, **changes)
    with runner(folder, 1.0) as reference:
        test.run_reference(reference, SAMPLES)
    return test


def test_an_equal_variant_is_accepted_with_the_worst_measures_of_outputs_of_every_dtype(tmp_path: Path) -> None:
    with runner(tmp_path, 1.0) as variant:
        result = acceptance(tmp_path).run(variant, ParityLimits())
    assert result.reasons == ()
    assert (result.measures.mae, result.measures.agreement, result.task_metrics) == (0.0, 1.0, {})


def test_a_variant_that_differs_is_refused_and_its_metric_is_not_measured(tmp_path: Path) -> None:
    test = acceptance(tmp_path, evaluation(off=0.5))
    assert test.task_metrics == {"y": pytest.approx(0.5)}
    with runner(tmp_path, -1.0) as variant:
        result = test.run(variant, LOOSE)
    assert "output 'y'" in result.reasons[0]
    assert "output 'positive'" in result.reasons[1]
    assert result.task_metrics == {}
    assert result.measures.cosine == -1.0


def test_a_metric_may_become_better_and_by_default_not_worse(tmp_path: Path) -> None:
    test = acceptance(tmp_path, evaluation(off=1.0))
    worse, better = test.task_metrics["y"] * 1.01, test.task_metrics["y"] * 0.99
    with runner(tmp_path, 1.0) as variant:
        assert test.run(variant, LOOSE).task_metrics == test.task_metrics
        test.task_metrics["y"] = better
        [reason] = test.run(variant, LOOSE).reasons
        assert "MAE of 'y' on the evaluation sample is 1, PyTorch's 0.99: worse by 1.01%, more than 0.00%" in reason
        test.task_metrics["y"] = worse
        assert test.run(variant, LOOSE).reasons == ()


@pytest.mark.parametrize(("allowed", "accepted"), [(0.2499, False), (0.25, True), (0.2501, True)])
def test_a_metric_may_lose_as_much_as_is_allowed(tmp_path: Path, allowed: float, accepted: bool) -> None:
    classes = EvaluationSample(
        inputs={"x": VALUES},
        targets={"positive": (VALUES > 0) ^ (np.arange(8)[:, None] < 2)},
        metrics={"positive": TaskMetric(name="accuracy")},
        specs=INPUTS,
        rows=len(VALUES),
    )
    test = acceptance(tmp_path, classes, metric_loss_max=allowed)
    assert test.task_metrics == {"positive": 0.75}
    test.task_metrics["positive"] = 1.0
    with runner(tmp_path, 1.0) as variant:
        assert (test.run(variant, LOOSE).reasons == ()) is accepted


def test_a_metric_without_a_value_is_refused(tmp_path: Path) -> None:
    test = acceptance(tmp_path, evaluation(off=float("nan")))
    with runner(tmp_path, 1.0) as variant:
        assert "is nan" in test.run(variant, LOOSE).reasons[0]


def test_samples_that_pytorch_does_not_run_block_every_variant(tmp_path: Path) -> None:
    test = AcceptanceTest(artifact=ARTIFACT, evaluation=evaluation(off=0.5))
    with runner(tmp_path, 1.0, rows=2) as reference:
        test.run_reference(reference, SAMPLES)
    assert len(test.blocked) == 1
    assert "index: 0 Got: 3 Expected: 2" in test.blocked[0]
    assert test.task_metrics == {}


def test_a_variant_that_does_not_run_the_evaluation_sample_is_refused(tmp_path: Path) -> None:
    test = acceptance(tmp_path, evaluation(off=0.5))
    test.expected = test.expected[:1]
    test.artifact = ARTIFACT.replace(export_batch_size=1)
    with runner(tmp_path, 1.0, rows=2) as variant, pytest.raises(RunnerRefused):
        test.run(variant, LOOSE)
