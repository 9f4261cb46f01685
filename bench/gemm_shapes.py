"""The matrix products that a graph amounts to, read from the graph itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx


@dataclass(frozen=True, slots=True, order=True)
class Gemm:
    """(m, k) times (k, n)."""

    m: int
    k: int
    n: int

    @property
    def flop(self) -> int:
        """A multiplication and an addition for each term."""
        return 2 * self.m * self.k * self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """The products by how often they occur, and what grouped convolutions, which are none, compute besides."""

    gemms: Counter[Gemm]
    grouped_flop: int

    @property
    def flop(self) -> int:
        """What the products compute in all."""
        return sum(gemm.flop * count for gemm, count in self.gemms.items())


def products_of(path: Path, batch_size: int) -> Products:
    """Return the products of a model at a batch size; its weights are not read.

    A dense convolution is the product of its patches with its kernel, which is how it is computed where the patches
    do not overlap.

    :raises ValueError: for a product whose shapes the graph does not tell.
    """
    model = onnx.load(str(path), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_value = batch_size
    # What the exporter noted on the values in between has the old names.
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    gemms: Counter[Gemm] = Counter()
    grouped_flop = 0
    for node in inferred.node:
        group = _attributes(node).get("group", 1)
        if node.op_type == "Conv" and group != 1:
            (kernel, output) = _known(node, shapes, node.input[1], node.output[0])
            grouped_flop += 2 * math.prod(output) * math.prod(kernel[1:])
        else:
            gemms.update(_gemms(node, shapes))
    return Products(gemms=gemms, grouped_flop=grouped_flop)


def _gemms(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> Iterator[Gemm]:
    if node.op_type == "MatMul":
        left, right = _known(node, shapes, *node.input)
        # Where the right side is a stack too, each of its matrices is a product of its own.
        count = math.prod(right[:-2])
        yield from [Gemm(math.prod(left[:-1]) // count, left[-1], right[-1])] * count
    elif node.op_type == "Gemm":
        left, right = _known(node, shapes, *node.input[:2])
        said = _attributes(node)
        m, k = reversed(left) if said.get("transA") else left
        yield Gemm(m, k, right[0] if said.get("transB") else right[1])
    elif node.op_type == "Conv":
        kernel, output = _known(node, shapes, node.input[1], node.output[0])
        yield Gemm(output[0] * math.prod(output[2:]), math.prod(kernel[1:]), kernel[0])


def _attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def _known(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]], *names: str) -> list[tuple[int, ...]]:
    found = [shapes.get(name, ()) for name in names]
    if not all(shape and all(shape) for shape in found):
        raise ValueError(f"{node.op_type} {node.name}: the graph does not tell the shapes of {', '.join(names)}")
    return found
