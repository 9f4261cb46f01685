"""ONNX graphs as the tuning looks at them: what could be quantised or folded, and files of the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_release.limits import EXTERNAL_DATA_FILE, MODEL_FILE

Array = npt.NDArray[Any]

# Layers whose work is a product with fixed weights, and which of their inputs those are.
_LAYERS = {"MatMul": 1, "Gemm": 1, "Conv": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFacts:
    """What decides which candidates make sense.

    `products` counts MatMul and Gemm with fixed float32 weights, `convolution_share` is the part of all layers' weights
    that convolutions hold, `scales` counts the multiplications that `fold_scales` would remove, and `heads` names the
    layers nearest to an output.
    """

    products: int
    convolution_share: float
    scales: int
    heads: tuple[str, ...]


def look_at(folder: Path) -> GraphFacts:
    """Read what matters of the model in `folder`; its weights stay on the disk."""
    model = ir.load(folder / MODEL_FILE)
    sizes = {kind: [_size(w) for n, w in _layers(model) if n.op_type == kind] for kind in _LAYERS}
    total = sum(sum(found) for found in sizes.values())
    return GraphFacts(
        products=len(sizes["MatMul"]) + len(sizes["Gemm"]),
        convolution_share=sum(sizes["Conv"]) / total if total else 0.0,
        scales=len(list(_foldable(model.graph))),
        heads=_heads(model),
    )


def fold_scales(source: Path, target: Path) -> int:
    """Write the model of one folder into another, each scale that follows a linear layer folded into its weights.

    A product of weight and scale is rounded once instead of twice, so the outputs agree within float32's own noise.

    :returns: how many were folded.
    """
    model = ir.load(source / MODEL_FILE)
    found = 0
    while (fold := next(_foldable(model.graph), None)) is not None:
        fold.apply(model.graph)
        found += 1
    save(model, target)
    return found


def rewrite(path: Path, target: Path) -> None:
    """Write a model that a tool made into the folder `target`, without what differs from one making to the next."""
    save(ir.load(path), target)


def save(model: ir.Model, folder: Path) -> None:
    """Write `model.onnx` and its external data, as the export does: no paths, no tool's remarks, fixed names."""
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(model, folder / MODEL_FILE, external_data=EXTERNAL_DATA_FILE)


def versions(folder: Path) -> tuple[int, int]:
    """Return the opset and the IR version of the model in `folder`."""
    model = ir.load(folder / MODEL_FILE)
    return int(model.opset_imports[""]), int(model.ir_version)


def _layers(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    for node in model.graph:
        place = _LAYERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        weight = node.inputs[place] if place is not None and len(node.inputs) > place else None
        if weight is not None and _is_fixed(weight):
            yield node, weight


def _size(weight: ir.Value) -> int:
    assert weight.const_value is not None  # noqa: S101 - it is fixed
    return weight.const_value.size


def _is_fixed(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None and value.dtype == ir.DataType.FLOAT


def _heads(model: ir.Model, depth: int = 3) -> tuple[str, ...]:
    """Return the names of up to `depth` layers before each output, and never more than half of all layers."""
    layers = [node for node, _ in _layers(model)]
    known = {id(node) for node in layers}
    outputs = set(model.graph.outputs)
    distances: dict[int, int] = {}
    for node in reversed(list(model.graph)):
        after = [distances[id(user)] for value in node.outputs for user in _users(value) if id(user) in distances]
        after += [0 for value in node.outputs if value in outputs]
        if after:
            distances[id(node)] = min(after) + (id(node) in known)
    near = sorted((distances.get(id(n), len(layers)), str(n.name)) for n in layers if n.name)
    return tuple(name for distance, name in near[: len(layers) // 2] if distance <= depth)


def _users(value: ir.Value) -> list[ir.Node]:
    return [usage.node for usage in value.uses()]


@dataclass(frozen=True, slots=True)
class _Fold:
    """A multiplication by a fixed scale, and the fixed tensors of the layer before it that take the scale in."""

    multiplication: ir.Node
    scale: ir.Value
    result: ir.Value
    weights: tuple[tuple[ir.Value, int], ...]

    def apply(self, graph: ir.Graph) -> None:
        scale = _array(self.scale).reshape(-1)
        for value, axis in self.weights:
            _replace(value, partial(_scaled, _array(value), scale, axis))
        ir.convenience.replace_all_uses_with(self.multiplication.outputs[0], self.result)
        graph.remove(self.multiplication, safe=True)
        if not self.scale.uses() and self.scale.name is not None:
            graph.initializers.pop(self.scale.name, None)


def _foldable(graph: ir.Graph) -> Iterator[_Fold]:
    for node in graph:
        if node.op_type != "Mul" or node.domain not in ("", "ai.onnx") or node.outputs[0].is_graph_output():
            continue
        for scale, result in (tuple(node.inputs), tuple(reversed(node.inputs))):
            if scale is None or result is None or not _is_fixed(scale) or not _is_private(result):
                continue
            weights = _weights_before(result)
            if weights and _fits(scale, result, weights):
                yield _Fold(node, scale, result, weights)
                break


def _is_private(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _weights_before(result: ir.Value) -> tuple[tuple[ir.Value, int], ...]:
    """Return the fixed tensors that a value is linear in, with the axis of its last dimension; empty when it is not."""
    node = result.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return ()
    if node.op_type == "MatMul":
        weight = node.inputs[1]
        return ((weight, 1),) if weight is not None and _is_own(weight, 2) else ()
    if node.op_type == "Gemm":
        return _of_gemm(node)
    if node.op_type == "Add":
        for bias, product in (tuple(node.inputs), tuple(reversed(node.inputs))):
            before = product.producer() if product is not None else None
            if before is not None and before.op_type == "MatMul" and product is not None and _is_private(product):
                weights = _weights_before(product)
                return (*weights, (bias, 0)) if weights and bias is not None and _is_own(bias, 1) else ()
    return ()


def _of_gemm(node: ir.Node) -> tuple[tuple[ir.Value, int], ...]:
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or not _is_own(weight, 2) or not (bias is None or _is_own(bias, 1)):
        return ()
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int() != 0
    found = ((weight, 0 if transposed else 1),)
    return found if bias is None else (*found, (bias, 0))


def _is_own(value: ir.Value, rank: int) -> bool:
    """Say whether a tensor is fixed, of this rank, and used in one place: another place must not be scaled."""
    return _is_fixed(value) and value.shape is not None and len(value.shape) == rank and _is_private(value)


def _fits(scale: ir.Value, result: ir.Value, weights: tuple[tuple[ir.Value, int], ...]) -> bool:
    """Say whether the scale lies along the result's last dimension alone, and each tensor has that dimension whole."""
    assert scale.shape is not None  # noqa: S101 - it is fixed
    shape = [int(size) for size in scale.shape]  # type: ignore[arg-type]  # a fixed tensor's sizes are numbers
    if any(size != 1 for size in shape[:-1]):
        return False
    if len(shape) > 1 and (result.shape is None or len(result.shape) < len(shape)):
        return False
    length = shape[-1] if shape else 1
    sizes = [value.shape[axis] for value, axis in weights if value.shape is not None]
    # A bias of one value, stretched over the outputs, cannot take in a scale of its own for each.
    return len(set(sizes)) == 1 and length in (1, sizes[0])


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None  # noqa: S101 - it is fixed
    return value.const_value.numpy()


def _scaled(array: Array, scale: Array, axis: int) -> ir.Tensor[Any]:
    along = [-1 if position == axis else 1 for position in range(array.ndim)]
    return ir.Tensor(np.ascontiguousarray(array * scale.reshape(along), dtype=array.dtype))


def _replace(value: ir.Value, make: Any) -> None:
    """Let a tensor be made when it is written, one at a time, so that no model is held twice."""
    assert value.const_value is not None  # noqa: S101 - it is fixed
    value.const_value = ir.LazyTensor(
        make, dtype=value.const_value.dtype, shape=ir.Shape(_array(value).shape), name=value.name
    )
