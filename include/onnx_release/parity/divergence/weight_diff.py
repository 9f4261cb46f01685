"""Which of several nodes between two known values holds a weight that is not PyTorch's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_release.parity.divergence.subgraph import ExportedGraph, Node

Array = npt.NDArray[Any]

# Reading and sorting weights of this many bytes takes seconds; above, nodes are not told apart by them.
WEIGHT_MAX_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Altered:
    """A constant of a node that has a parameter's size and not its values."""

    node: Node
    weight: str
    parameter: str
    max_abs: float


def altered_weights(graph: ExportedGraph, nodes: list[Node], parameters: Mapping[str, Array]) -> list[Altered]:
    """Return the constants of these nodes that equal none of the parameters of their size, in whatever order.

    The exporter transposes and reorders weights, so values are compared sorted.
    """
    if not parameters or graph.weight_bytes(nodes) > WEIGHT_MAX_BYTES:
        return []
    found = []
    candidates = {**parameters, **_joined_biases(parameters)}
    for node in nodes:
        for name, weight in graph.weights(node).items():
            differences = _differences(weight, candidates)
            if differences and min(differences.values()) > 0.0:
                nearest = min(differences, key=lambda key: differences[key])
                found.append(Altered(node=node, weight=name, parameter=nearest, max_abs=differences[nearest]))
    return found


def _joined_biases(parameters: Mapping[str, Array]) -> dict[str, Array]:
    """Return all biases as one: ONNX's recurrent operators take those of input and state in one tensor."""
    biases = {name: parameter for name, parameter in parameters.items() if parameter.ndim == 1}
    return {" + ".join(biases): np.concatenate(list(biases.values()))} if len(biases) > 1 else {}


def _differences(weight: Array, parameters: Mapping[str, Array]) -> dict[str, float]:
    """Return how far the weight is from each parameter of its size: 0 when it has the same values in some order."""
    return {
        name: _difference(weight, parameter)
        for name, parameter in parameters.items()
        if parameter.size == weight.size and weight.size
    }


def _difference(weight: Array, parameter: Array) -> float:
    if np.array_equal(np.sort(weight, axis=None), np.sort(parameter, axis=None)):
        return 0.0
    flat = weight.ravel()
    # The exporter transposes the weights of linear layers; the order that agrees at more places is the one meant.
    order = max((parameter.ravel(), parameter.T.ravel()), key=lambda values: int((values == flat).sum()))
    return float(np.abs(flat - order).max())
