"""ONNX graphs in a tuning: the facts that select variants, folded scales, and reproducible files."""

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

# Layers that multiply by constant weights, with the position of the weights among their inputs.
_LAYERS = {"MatMul": 1, "Gemm": 1, "Conv": 1}
# The last layers before an output stay in float when a quantization is tried again.
_HEAD_DEPTH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFacts:
    """Properties of a graph that select the variants to try.

    `products` counts MatMul and Gemm with constant float32 weights. `convolution_share` is the share of the layers'
    weights in convolutions. `scales` counts the multiplications that `fold_scales` removes. `heads` are the names of
    the layers nearest to an output.
    """

    products: int
    convolution_share: float
    scales: int
    heads: tuple[str, ...]


def read_facts(folder: Path) -> GraphFacts:
    """Read the facts of the model in `folder`. Its weights are not loaded."""
    model = ir.load(folder / MODEL_FILE)
    sizes: dict[str, list[int]] = {kind: [] for kind in _LAYERS}
    for node, weight in _layers(model):
        sizes[node.op_type].append(_constant(weight).size)
    total = sum(sum(found) for found in sizes.values())
    return GraphFacts(
        products=len(sizes["MatMul"]) + len(sizes["Gemm"]),
        convolution_share=sum(sizes["Conv"]) / total if total else 0.0,
        scales=len(list(_foldable(model.graph))),
        heads=_heads(model),
    )


def read_versions(folder: Path) -> tuple[int, int]:
    """Return the opset and the IR version of the model in `folder`."""
    model = ir.load(folder / MODEL_FILE)
    return int(model.opset_imports[""]), int(model.ir_version)


def fold_scales(source: Path, target: Path) -> int:
    """Copy a model and fold each constant scale after a linear layer into the layer's weights.

    The product of weight and scale is then rounded once instead of twice, so the outputs agree within float32's error.

    Args:
        source: the folder of the model.
        target: the folder of the copy.

    Returns:
        The number of folded scales.
    """
    model = ir.load(source / MODEL_FILE)
    count = 0
    while (fold := next(_foldable(model.graph), None)) is not None:
        fold.apply(model.graph)
        count += 1
    save(model, target)
    return count


def normalize(path: Path, target: Path) -> None:
    """Copy a tool's model into the folder `target`, without everything that differs between two runs of the tool."""
    save(ir.load(path), target)


def save(model: ir.Model, folder: Path) -> None:
    """Write ``model.onnx`` and its external data as the export does: no metadata, and fixed file names."""
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


def _layers(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Yield each layer with its constant weights."""
    for node in model.graph:
        position = _LAYERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        weight = node.inputs[position] if position is not None and len(node.inputs) > position else None
        if weight is not None and _is_constant(weight):
            yield node, weight


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None and value.dtype == ir.DataType.FLOAT


def _constant(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None  # noqa: S101 - every caller has checked `_is_constant`
    return value.const_value


def _heads(model: ir.Model) -> tuple[str, ...]:
    """Return the names of up to `_HEAD_DEPTH` layers before each output, and at most half of all layers."""
    layers = [node for node, _ in _layers(model)]
    layer_ids = {id(node) for node in layers}
    outputs = set(model.graph.outputs)
    # Layers from each node to the nearest output, the node included.
    distances: dict[int, int] = {}
    for node in reversed(list(model.graph)):
        users = [usage.node for value in node.outputs for usage in value.uses()]
        after = [distances[id(user)] for user in users if id(user) in distances]
        after += [0 for value in node.outputs if value in outputs]
        if after:
            distances[id(node)] = min(after) + (id(node) in layer_ids)
    nearest = sorted((distances.get(id(n), len(layers)), str(n.name)) for n in layers if n.name)
    return tuple(name for distance, name in nearest[: len(layers) // 2] if distance <= _HEAD_DEPTH)


@dataclass(frozen=True, slots=True)
class _Fold:
    """A multiplication by a constant scale, and the constants of the layer before it that can include the scale.

    `weights` has each constant with the axis of the layer's output features.
    """

    multiplication: ir.Node
    scale: ir.Value
    result: ir.Value
    weights: tuple[tuple[ir.Value, int], ...]

    def apply(self, graph: ir.Graph) -> None:
        scale = _constant(self.scale).numpy().reshape(-1)
        for value, axis in self.weights:
            tensor, array = _constant(value), _constant(value).numpy()
            # Lazy: each tensor is computed when it is written, so no second model is in memory.
            value.const_value = ir.LazyTensor(
                partial(_scaled, array, scale, axis),
                dtype=tensor.dtype,
                shape=ir.Shape(array.shape),
                name=value.name,
            )
        ir.convenience.replace_all_uses_with(self.multiplication.outputs[0], self.result)
        graph.remove(self.multiplication, safe=True)
        if not self.scale.uses() and self.scale.name is not None:
            graph.initializers.pop(self.scale.name, None)


def _scaled(array: Array, scale: Array, axis: int) -> ir.Tensor[Any]:
    along = [-1 if position == axis else 1 for position in range(array.ndim)]
    return ir.Tensor(np.ascontiguousarray(array * scale.reshape(along), dtype=array.dtype))


def _foldable(graph: ir.Graph) -> Iterator[_Fold]:
    for node in graph:
        if node.op_type != "Mul" or node.domain not in ("", "ai.onnx") or node.outputs[0].is_graph_output():
            continue
        for scale, result in (tuple(node.inputs), tuple(reversed(node.inputs))):
            if scale is None or result is None or not _is_constant(scale) or not _has_one_use(result):
                continue
            weights = _weights_before(result)
            if weights and _fits(scale, result, weights):
                yield _Fold(node, scale, result, weights)
                break


def _has_one_use(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _is_scalable(value: ir.Value | None, rank: int) -> bool:
    """Return True for a constant of this rank with one use: another use must not be scaled."""
    return (
        value is not None
        and _is_constant(value)
        and value.shape is not None
        and len(value.shape) == rank
        and _has_one_use(value)
    )


def _weights_before(result: ir.Value) -> tuple[tuple[ir.Value, int], ...]:
    """Return the constants that a value is linear in, with the axis of its last dimension; empty if it is not."""
    node = result.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return ()
    if node.op_type == "MatMul":
        weight = node.inputs[1]
        return ((weight, 1),) if weight is not None and _is_scalable(weight, 2) else ()
    if node.op_type == "Gemm":
        weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        if weight is None or not _is_scalable(weight, 2) or not (bias is None or _is_scalable(bias, 1)):
            return ()
        transposed = "transB" in node.attributes and node.attributes["transB"].as_int() != 0
        found = ((weight, 0 if transposed else 1),)
        return found if bias is None else (*found, (bias, 0))
    if node.op_type == "Add":
        for bias, product in (tuple(node.inputs), tuple(reversed(node.inputs))):
            before = product.producer() if product is not None else None
            if before is not None and before.op_type == "MatMul" and product is not None and _has_one_use(product):
                weights = _weights_before(product)
                return (*weights, (bias, 0)) if weights and bias is not None and _is_scalable(bias, 1) else ()
    return ()


def _fits(scale: ir.Value, result: ir.Value, weights: tuple[tuple[ir.Value, int], ...]) -> bool:
    """Return True if the scale varies along the last dimension alone, and every constant has all of that dimension."""
    shape = [int(size) for size in _constant(scale).shape]  # type: ignore[arg-type]  # a constant has integer sizes
    if any(size != 1 for size in shape[:-1]):
        return False
    if len(shape) > 1 and (result.shape is None or len(result.shape) < len(shape)):
        return False
    length = shape[-1] if shape else 1
    sizes = [value.shape[axis] for value, axis in weights if value.shape is not None]
    # A bias of one value is broadcast, so it cannot include a different scale for each output.
    return len(set(sizes)) == 1 and length in (1, sizes[0])
