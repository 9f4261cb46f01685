"""The process of a runtime: it answers beside noise, and a model without end or bound ends nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_release.errors import RunnerRefused
from onnx_release.serving.runtime_environment import RuntimeEnvironment, installed_version
from onnx_release.serving.runtime_process import RuntimeEnded, RuntimeProcess, RuntimeRunner

OWN = RuntimeEnvironment(version=installed_version() or "", python=sys.executable, is_own=True)
INPUTS = {"x": np.ones(1, np.float32)}


def _save(path: Path, nodes: list[onnx.NodeProto], **constants: np.ndarray) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_a_model_that_needs_too_much_memory_fails_by_name_and_the_process_goes_on(tmp_path: Path) -> None:
    large = _save(
        tmp_path / "large.onnx",
        [helper.make_node("Expand", ["x", "size"], ["wide"]), helper.make_node("ReduceSum", ["wide"], ["y"])],
        size=np.array([4_000_000_000]),
    )
    small = _save(tmp_path / "small.onnx", [helper.make_node("Add", ["x", "x"], ["y"])])
    with RuntimeProcess(OWN, 60, memory_bytes=2 * 2**30) as process:
        assert process.open(large, 1, {}) is None
        with pytest.raises(RunnerRefused, match="allocate"):
            RuntimeRunner(process).run(INPUTS)
        assert process.open(small, 1, {}) is None
        assert RuntimeRunner(process).run(INPUTS) == {"y": np.array([2], np.float32)}
        assert len(process.time(INPUTS, 3, 10).wall_s) == 3


def test_a_model_without_end_ends_at_the_deadline(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["a", "a"], ["b"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("a", TensorProto.FLOAT, [1])],
        [value("on", TensorProto.BOOL, []), value("b", TensorProto.FLOAT, [1])],
    )
    endless = _save(
        tmp_path / "endless.onnx",
        [helper.make_node("Loop", ["count", "true", "x"], ["y"], body=body)],
        count=np.array(2**60),
        true=np.array(True),
    )
    with RuntimeProcess(OWN, 60) as process:
        assert process.open(endless, 1, {}) is None
        process._deadline_s = 0.3
        process.restart_clock()
        with pytest.raises(RuntimeEnded, match=r"within 0\.3 s"):
            process.run(INPUTS)
        assert process._child.poll() is not None
