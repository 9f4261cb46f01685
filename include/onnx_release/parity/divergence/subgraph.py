"""Parts of an exported graph: the nodes that compute a value, as a graph of their own with known values as inputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_release.trained.arrays import Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Node of the graph, with its index in the list of nodes."""

    index: int
    name: str
    op_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Part of a graph as bytes; `outputs` maps each requested value to its name in the part."""

    model: bytes
    outputs: dict[str, str]


class ExportedGraph:
    """ONNX file whose weights stay on disk. Only the main graph is searched, not the bodies of its loops."""

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        self._model = onnx.load(path, load_external_data=False)
        graph = self._model.graph
        self._nodes = list(graph.node)
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._producer = {name: i for i, node in enumerate(self._nodes) for name in node.output if name}
        self.inputs = tuple(value.name for value in graph.input if value.name not in self._weights)
        self.outputs = tuple(value.name for value in graph.output)

    @property
    def values(self) -> tuple[str, ...]:
        """The outputs of the nodes, in the order of the graph, which ONNX requires to be topological."""
        return tuple(self._producer)

    def node(self, index: int) -> Node:
        """Return the node with this index."""
        node = self._nodes[index]
        return Node(index=index, name=node.name or f"node {index} (unnamed)", op_type=node.op_type)

    def producer(self, value: str) -> Node:
        """Return the node that computes a value."""
        return self.node(self._producer[value])

    def segment(self, value: str, known: Collection[str]) -> list[Node]:
        """Return the nodes between the known values and `value`, in order; the last one computes it."""
        return [self.node(index) for index in sorted(self._needed([value], known)[0])]

    def sources(self, values: Sequence[str], known: Collection[str]) -> set[str]:
        """Return the known values and graph inputs from which `values` are computed."""
        return self._needed(values, known)[1]

    def whole(self) -> bytes:
        """Return the graph of the file."""
        return bytes(self._model.SerializeToString())

    def cut(self, values: Sequence[str], known: Mapping[str, np.dtype[Any]]) -> Cut:
        """Return a graph that computes `values` from known values and the graph's inputs, which become its inputs.

        A requested value may also be known. Nodes that read it get the known one, so no error travels on.
        """
        indices, sources = self._needed(values, known)
        nodes = [self._nodes[index] for index in sorted(indices)]
        used = {name for node in nodes for name in _reads(node)}
        taken = {*self._producer, *self._weights, *self.inputs}
        renamed = {}
        for name in sorted({name for node in nodes for name in node.output if name in known}):
            renamed[name] = f"{name}:computed"
            while renamed[name] in taken:
                renamed[name] += "'"
            taken.add(renamed[name])
        graph = onnx.GraphProto(name="cut")
        for node in nodes:
            copy = graph.node.add()
            copy.CopyFrom(node)
            copy.output[:] = [renamed.get(name, name) for name in node.output]
        graph.initializer.extend(tensor for name, tensor in self._weights.items() if name in used)
        declared = {value.name: value for value in self._model.graph.input}
        for name in sorted(sources):
            if name in known:
                # Without a shape: a graph with wrong shapes then opens, and fails when it runs.
                kind = onnx.helper.np_dtype_to_tensor_dtype(known[name])
                graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
            else:
                graph.input.append(declared[name])
        graph.output.extend(onnx.helper.make_empty_tensor_value_info(renamed.get(value, value)) for value in values)
        model = onnx.ModelProto(ir_version=self._model.ir_version, graph=graph)
        model.opset_import.extend(self._model.opset_import)
        model.functions.extend(self._model.functions)
        return Cut(model=model.SerializeToString(), outputs={value: renamed.get(value, value) for value in values})

    def weights(self, node: Node) -> Arrays:
        """Return the floating-point constants of the node, read from disk."""
        tensors = (self._weights[name] for name in self._nodes[node.index].input if name in self._weights)
        return {
            tensor.name: numpy_helper.to_array(tensor, str(self._folder)) for tensor in tensors if _floating(tensor)
        }

    def weight_bytes(self, nodes: Sequence[Node]) -> int:
        """Return the size of all floating-point constants of these nodes, as float32."""
        names = {name for node in nodes for name in self._nodes[node.index].input if name in self._weights}
        return sum(4 * math.prod(self._weights[name].dims) for name in names if _floating(self._weights[name]))

    def weight_names(self, node: Node) -> tuple[str, ...]:
        """Return the names of all constants that the node reads."""
        return tuple(name for name in self._nodes[node.index].input if name in self._weights)

    def _needed(self, values: Sequence[str], known: Collection[str]) -> tuple[set[int], set[str]]:
        """Return the nodes between the known values and `values`, and the known values that they read."""
        indices: set[int] = set()
        sources: set[str] = set()
        waiting = [self._producer[value] for value in values]
        while waiting:
            index = waiting.pop()
            if index in indices:
                continue
            indices.add(index)
            for name in _reads(self._nodes[index]):
                if name in known or name in self.inputs:
                    sources.add(name)
                elif name in self._producer:
                    waiting.append(self._producer[name])
        return indices, sources


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names of the values that a node reads, also in the bodies of an If, Loop or Scan."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            own = {value.name for value in (*body.input, *body.initializer)}
            own |= {name for inner in body.node for name in inner.output}
            reads = {name for inner in body.node for name in _reads(inner)} | {value.name for value in body.output}
            yield from sorted(reads - own)


def _floating(tensor: onnx.TensorProto) -> bool:
    kinds = onnx.TensorProto
    return tensor.data_type in (kinds.FLOAT, kinds.DOUBLE, kinds.FLOAT16)
