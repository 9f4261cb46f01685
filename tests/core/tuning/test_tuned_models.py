"""Rewritten graphs of a tuning: folded scales, int8 in ONNX's own operators, reproducible bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_release.limits import MODEL_FILE
from onnx_release.tuning.graph_rewrites import fold_scales, read_facts
from onnx_release.tuning.quantization import (
    Int8Options,
    convert_to_float16,
    quantize_blockwise,
    quantize_dynamic,
    quantize_static,
)
from tests.core.tuning.tuned_models import WIDTH, export, rows
from tests.refusals import refused

SAMPLES = [{"x": rows(8, seed)} for seed in (1, 2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("models"))[1]


def ops(folder: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(folder / MODEL_FILE).graph.node)


def run(folder: Path, inputs: dict[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def relative_error(folder: Path, other: Path) -> float:
    expected, actual = (run(one, {"x": rows(32, 9)}) for one in (folder, other))
    return float(np.sqrt(np.mean((expected - actual) ** 2) / np.mean(expected**2)))


def test_facts_count_layers_and_scales_and_name_the_heads(folder: Path) -> None:
    facts = read_facts(folder)
    assert (facts.products, facts.convolution_share, facts.scales) == (4, 0.0, 1)
    assert len(facts.heads) == 2, "the last two of four layers"


def test_a_folded_scale_does_not_change_the_outputs(folder: Path, tmp_path: Path) -> None:
    assert fold_scales(folder, tmp_path) == 1
    assert (ops(folder)["Mul"] - ops(tmp_path)["Mul"], read_facts(tmp_path).scales) == (1, 0)
    assert relative_error(folder, tmp_path) < 1e-6


def graph(*nodes: onnx.NodeProto, **tensors: Any) -> onnx.ModelProto:
    values = [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in tensors.items()]
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")]
    made = helper.make_graph(list(nodes), "g", sides[:1], sides[1:], values)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


WEIGHT = np.random.default_rng(0).standard_normal((4, 4))
GEMM = helper.make_node("Gemm", ["x", "w", "b"], ["g"], "gemm", transB=1)
IDENTITY = helper.make_node("Identity", ["m"], ["y"])


@pytest.mark.parametrize(
    ("nodes", "tensors", "scales"),
    [
        ([GEMM, helper.make_node("Mul", ["g", "s"], ["m"])], {"b": np.ones(4), "s": [1, 2, 3, 4]}, 1),
        ([GEMM, helper.make_node("Mul", ["s", "g"], ["m"])], {"b": np.ones(4), "s": 3.0}, 1),
        # Not folded: a bias of one value for four scales, a scale along rows, and a weight with a second use, which
        # must not be scaled.
        ([GEMM, helper.make_node("Mul", ["g", "s"], ["m"])], {"b": [1.0], "s": [1, 2, 3, 4]}, 0),
        ([GEMM, helper.make_node("Mul", ["g", "s"], ["m"])], {"b": np.ones(4), "s": np.ones((4, 1))}, 0),
        (
            [
                helper.make_node("MatMul", ["x", "w"], ["a"]),
                helper.make_node("MatMul", ["a", "w"], ["g"]),
                helper.make_node("Mul", ["g", "s"], ["m"]),
            ],
            {"b": np.ones(4), "s": [1, 2, 3, 4]},
            0,
        ),
        (
            [GEMM, helper.make_node("Mul", ["g", "s"], ["n"]), helper.make_node("Add", ["n", "g"], ["m"])],
            {"b": np.ones(4), "s": [1, 2, 3, 4]},
            0,
        ),
    ],
    ids=["a vector", "a number", "short bias", "rows", "shared weight", "used besides"],
)
def test_a_scale_is_only_folded_where_it_keeps_the_outputs(
    tmp_path: Path, nodes: Any, tensors: Any, scales: int
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    onnx.save(graph(*nodes, IDENTITY, w=WEIGHT, **tensors), before / MODEL_FILE)
    assert fold_scales(before, after) == scales
    x = {"x": np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)}
    np.testing.assert_allclose(run(after, x), run(before, x), rtol=1e-5, atol=1e-6)


def test_int8_dynamic_quantizes_every_linear_layer_in_operators_of_onnx(folder: Path, tmp_path: Path) -> None:
    quantize_dynamic(folder, tmp_path, Int8Options())
    assert (ops(tmp_path)["MatMulInteger"], ops(tmp_path)["MatMul"], ops(tmp_path)["Gemm"]) == (4, 0, 0)
    assert [(imported.domain) for imported in onnx.load(tmp_path / MODEL_FILE).opset_import] == [""]
    assert 0.0 < relative_error(folder, tmp_path) < 0.05


def test_int8_static_puts_pairs_around_every_linear_layer(folder: Path, tmp_path: Path) -> None:
    quantize_static(folder, tmp_path, Int8Options(), SAMPLES)
    model = onnx.load(tmp_path / MODEL_FILE)
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert [[made_by[name] for name in node.input[:2]] for node in products] == [["DequantizeLinear"] * 2] * 4
    assert {node.domain for node in model.graph.node} == {""}
    assert 0.0 < relative_error(folder, tmp_path) < 0.05


def test_int8_blockwise_quantizes_every_linear_layer_and_is_closer_than_dynamic(folder: Path, tmp_path: Path) -> None:
    quantize_blockwise(folder, tmp_path / "blockwise", Int8Options())
    quantize_dynamic(folder, tmp_path / "dynamic", Int8Options())
    found = ops(tmp_path / "blockwise")
    assert (found["MatMulNBits"], found["MatMul"], found["Gemm"]) == (4, 0, 0)
    assert 0.0 < relative_error(folder, tmp_path / "blockwise") < relative_error(folder, tmp_path / "dynamic")


def test_the_careful_blockwise_form_has_shorter_blocks_and_heads_in_float(folder: Path, tmp_path: Path) -> None:
    heads = read_facts(folder).heads
    quantize_blockwise(folder, tmp_path / "plain", Int8Options())
    quantize_blockwise(folder, tmp_path / "careful", Int8Options(exclude=heads, whole_bytes=True))
    assert ops(tmp_path / "careful")["MatMulNBits"] == 4 - len(heads)
    blocks = [
        {attribute.name: attribute.i for node in model.graph.node for attribute in node.attribute}["block_size"]
        for model in (onnx.load(tmp_path / name / MODEL_FILE) for name in ("plain", "careful"))
    ]
    assert blocks[1] < blocks[0]
    assert relative_error(folder, tmp_path / "careful") < relative_error(folder, tmp_path / "plain")


@pytest.mark.parametrize("static", [False, True])
def test_the_careful_form_has_heads_in_float_and_a_smaller_error(folder: Path, tmp_path: Path, static: bool) -> None:
    errors = []
    for name, options in (
        ("plain", Int8Options()),
        ("careful", Int8Options(exclude=read_facts(folder).heads, whole_bytes=True)),
    ):
        if static:
            quantize_static(folder, tmp_path / name, options, SAMPLES)
        else:
            quantize_dynamic(folder, tmp_path / name, options)
        errors.append(relative_error(folder, tmp_path / name))
    assert errors[1] < errors[0]
    weights = {
        tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "careful" / MODEL_FILE).graph.initializer
    }
    assert len([kind for name, kind in weights.items() if kind == TensorProto.UINT8 and "quantized" in name]) == 2


def test_float16_keeps_its_inputs_and_outputs(folder: Path, tmp_path: Path) -> None:
    convert_to_float16(folder, tmp_path)
    model = onnx.load(tmp_path / MODEL_FILE)
    sides = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in sides} == {TensorProto.FLOAT}
    assert TensorProto.FLOAT16 in {tensor.data_type for tensor in model.graph.initializer}
    assert 0.0 < relative_error(folder, tmp_path) < 5e-3


def test_a_graph_that_the_tool_rejects_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    onnx.save(graph(GEMM, IDENTITY, w=WEIGHT, b=np.ones(4)), tmp_path / "source" / MODEL_FILE)
    with refused("unsupported_by_tool", "int8-dynamic"):
        quantize_dynamic(tmp_path / "source", tmp_path / "out", Int8Options())


def test_two_processes_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    code = f"""
import sys
import numpy as np
from pathlib import Path
from onnx_release.tuning.graph_rewrites import fold_scales
from onnx_release.tuning.quantization import Int8Options, quantize_blockwise, quantize_dynamic, quantize_static
source, out = Path({str(folder)!r}), Path(sys.argv[1])
fold_scales(source, out / "fused")
quantize_dynamic(out / "fused", out / "dynamic", Int8Options())
quantize_blockwise(out / "fused", out / "blockwise", Int8Options())
samples = [{{"x": np.random.default_rng(1).standard_normal((8, 4, {WIDTH})).astype(np.float32)}}]
quantize_static(out / "fused", out / "static", Int8Options(), samples)
"""
    digests = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", code, str(out)], check=True, env=env, cwd=tmp_path)
        files = sorted(path for path in out.rglob("*") if path.is_file())
        digests.append({str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    assert len(digests[0]) >= 4
    assert digests[0] == digests[1]
