"""Comparison of the weights of several nodes with PyTorch's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_release.parity.divergence.subgraph import ExportedGraph, Node

Array = npt.NDArray[Any]

# Reading and sorting weights of this size takes seconds; larger ones are not compared.
WEIGHT_MAX_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Altered:
    """Constant of a node with the size of a parameter and other values."""

    node: Node
    weight: str
    parameter: str
    max_abs: float


def altered_weights(graph: ExportedGraph, nodes: list[Node], parameters: Mapping[str, Array]) -> list[Altered]:
    """Return the constants of these nodes that differ from every parameter of their size.

    The exporter transposes and reorders weights, so the sorted values are compared.
    """
    if not parameters or graph.weight_bytes(nodes) > WEIGHT_MAX_BYTES:
        return []
    found = []
    # ONNX's recurrent operators have the biases of input and state in one tensor.
    biases = {name: parameter for name, parameter in parameters.items() if parameter.ndim == 1}
    joined = {" + ".join(biases): np.concatenate(list(biases.values()))} if len(biases) > 1 else {}
    candidates = {**parameters, **joined}
    for node in nodes:
        for name, weight in graph.weights(node).items():
            differences = {
                parameter_name: _difference(weight, parameter)
                for parameter_name, parameter in candidates.items()
                if parameter.size == weight.size and weight.size
            }
            if differences and min(differences.values()) > 0.0:
                nearest = min(differences, key=lambda key: differences[key])
                found.append(Altered(node=node, weight=name, parameter=nearest, max_abs=differences[nearest]))
    return found


def _difference(weight: Array, parameter: Array) -> float:
    """Return the largest difference of two arrays of one size; 0 for the same values in any order."""
    if np.array_equal(np.sort(weight, axis=None), np.sort(parameter, axis=None)):
        return 0.0
    flat = weight.ravel()
    # The exporter transposes the weights of linear layers, so the order with more equal elements is used.
    order = max((parameter.ravel(), parameter.T.ravel()), key=lambda values: int((values == flat).sum()))
    return float(np.abs(flat - order).max())
