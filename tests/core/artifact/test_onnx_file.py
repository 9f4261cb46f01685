"""The ONNX file of an artifact: one file up to a limit, else external data, with the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from onnx_release import limits
from onnx_release.artifact import onnx_file
from onnx_release.limits import EXTERNAL_DATA_FILE, MODEL_FILE
from tests.refusals import refused

WEIGHT = np.arange(256, dtype=np.float32).reshape(16, 16)


def _model() -> ir.Model:
    """Return x @ w, in an If, so that a graph inside a node has weights too."""
    x = ir.Value(name="x", shape=ir.Shape(["batch", 16]), type=ir.TensorType(ir.DataType.FLOAT))
    yes = ir.Value(name="yes", const_value=ir.tensor(np.array(True), name="yes"))
    branches = []
    for name in ("then", "else"):
        w = ir.Value(name=f"w_{name}", const_value=ir.tensor(WEIGHT, name=f"w_{name}"))
        product = ir.node("MatMul", [x, w])
        product.outputs[0].name = f"y_{name}"
        branches.append(ir.Graph([], product.outputs, nodes=[product], initializers=[w], name=name))
    choice = ir.node("If", [yes], attributes={"then_branch": branches[0], "else_branch": branches[1]})
    y = choice.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(["batch", 16]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], [y], nodes=[choice], initializers=[yes], opset_imports={"": 20}, name="main")
    return ir.Model(graph, ir_version=10)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _runs(folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    x = np.ones((2, 16), np.float32)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ WEIGHT, rtol=1e-6)


def test_weights_up_to_the_limit_are_in_the_one_file(tmp_path: Path) -> None:
    size = onnx_file.weights_bytes(_model())
    assert size == 2 * WEIGHT.nbytes + 1
    for name, max_bytes in (("one", size), ("two", size - 1)):
        (tmp_path / name).mkdir()
        onnx_file.save(_model(), tmp_path / name, max_bytes)
        _runs(tmp_path / name)
    assert set(_files(tmp_path / "one")) == {MODEL_FILE}
    assert set(_files(tmp_path / "two")) == {MODEL_FILE, EXTERNAL_DATA_FILE}


def test_a_repacked_model_has_the_bytes_of_a_saved_one(tmp_path: Path) -> None:
    limit = limits.SINGLE_FILE_MAX_BYTES
    for name in ("first", "one", "two", "one_of_two", "two_of_one", "copied"):
        (tmp_path / name).mkdir()
    # A graph that was read has types that a new one lacks.
    onnx_file.save(_model(), tmp_path / "first", 0)
    for name, max_bytes in (("one", limit), ("two", 0)):
        onnx_file.save(ir.load(tmp_path / "first" / MODEL_FILE), tmp_path / name, max_bytes)
    onnx_file.repack(tmp_path / "two", tmp_path / "one_of_two", limit)
    onnx_file.repack(tmp_path / "one", tmp_path / "two_of_one", 0)
    onnx_file.repack(tmp_path / "two", tmp_path / "copied", 0)
    assert _files(tmp_path / "one_of_two") == _files(tmp_path / "one")
    assert _files(tmp_path / "two_of_one") == _files(tmp_path / "copied") == _files(tmp_path / "two")


@pytest.mark.parametrize("largest", [2**10, 2**11 + 8])
def test_one_file_beyond_the_limit_of_its_format_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    monkeypatch.setattr(limits, "PROTO_MAX_BYTES", largest)
    with refused("single_file_too_large", "single_file_max_bytes", str(2**20)):
        onnx_file.save(_model(), tmp_path, 2**20)
    assert not _files(tmp_path)
