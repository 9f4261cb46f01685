"""Detection of exported programs that were traced in training mode, which a later `eval()` cannot change."""

from __future__ import annotations

from typing import Any

import torch

from onnx_release.errors import ExportRefused
from onnx_release.export.torch_patches import OpOverload

_FLAGS = ("train", "training")
_RATES = ("p", "dropout")


def require_eval(program: torch.export.ExportedProgram) -> None:
    """Refuse a program that was traced in training mode.

    Raises:
        ExportRefused: With the code ``train_mode`` and the first five operators.
    """
    if nodes := training_nodes(program):
        raise ExportRefused(
            "The model",
            f"was traced in training mode: {', '.join(nodes[:5])} {'is' if len(nodes) == 1 else 'are'} active",
            "Call `model.eval()` before you log the model. Write `functional.dropout(x, training=self.training)`: "
            "without that argument, dropout is active in eval mode too.",
            code="train_mode",
        )


def training_nodes(program: torch.export.ExportedProgram) -> list[str]:
    """Return the operators in training mode (``dropout``, ``batch_norm``, …), each with the name of its node.

    The operator's own flag decides, so the same operator in eval mode passes. A dropout of rate 0, the default of an
    LSTM, changes nothing and passes too. Code under `no_grad` or in a `cond` is a separate graph inside the program,
    which is searched as well.
    """
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    return [
        f"{node.target._schema.name.removeprefix('aten::')} ({node.name})"
        for graph in graphs
        for node in graph.nodes
        if node.op == "call_function" and isinstance(node.target, OpOverload) and _is_training(node)
    ]


def _is_training(node: Any) -> bool:
    arguments: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        default = node.kwargs.get(argument.name, argument.default_value)
        arguments[argument.name] = node.args[position] if position < len(node.args) else default
    if arguments.get("dropout_p", 0.0) != 0.0:  # attention has a rate and no flag
        return True
    if not any(arguments.get(flag) is True for flag in _FLAGS):
        return False
    return all(arguments[rate] != 0 for rate in _RATES if rate in arguments)
