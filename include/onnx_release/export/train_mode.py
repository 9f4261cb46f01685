"""Whether an exported program was traced in train mode, which no later `eval()` can undo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from onnx_release.errors import Refused

_FLAGS = ("train", "training")
_RATES = ("p", "dropout")


class TrainMode(Refused):
    """A graph in train mode: no other way to export the model mends it."""


def training_nodes(program: torch.export.ExportedProgram) -> list[str]:
    """Return the operators (``dropout``, ``batch_norm``, …) that behave as in training, each with its node's name.

    They are known by their own flag, so that the same operator in eval mode passes. A dropout of rate 0, as an LSTM
    has by default, changes nothing and passes too.
    """
    return [
        f"{node.target._schema.name.removeprefix('aten::')} ({node.name})"
        for graph in _graphs(program)
        for node in graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and _is_training(node)
    ]


def _graphs(program: torch.export.ExportedProgram) -> Iterator[torch.fx.Graph]:
    """Yield the graph and those inside it: what ran under `no_grad` or in a `cond` is a graph of its own."""
    modules = program.graph_module.modules()
    yield from (module.graph for module in modules if isinstance(module, torch.fx.GraphModule))


def _is_training(node: Any) -> bool:
    arguments = _arguments(node)
    if arguments.get("dropout_p", 0.0) != 0.0:  # attention has a rate and no flag
        return True
    if not any(arguments.get(flag) is True for flag in _FLAGS):
        return False
    return all(arguments[rate] != 0 for rate in _RATES if rate in arguments)


def _arguments(node: Any) -> dict[str, Any]:
    """Return the call's arguments by the schema's names, defaults included."""
    values = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            values[argument.name] = node.args[position]
        else:
            values[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return values
