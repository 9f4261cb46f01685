"""Detection of exported programs that were traced in training mode, which a later `eval()` cannot change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from onnx_release.errors import ExportRefused
from onnx_release.export.torch_patches import OpOverload

_FLAGS = ("train", "training")
_RATES = ("p", "dropout")


def require_eval(program: torch.export.ExportedProgram, *, forced: bool = False) -> None:
    """Refuse a program that was traced in training mode.

    Args:
        program: The program.
        forced: True if the module was in evaluation mode at the trace, so that its own code chose training mode.

    Raises:
        ExportRefused: With the code ``train_mode`` and the first five operators.
    """
    if nodes := training_nodes(program):
        cause = "stays in training mode after `model.eval()`" if forced else "was traced in training mode"
        action = (
            "Write `functional.dropout(x, training=self.training)`, and the same for batch norm: `forward` decides the "
            "mode of these functions."
        )
        raise ExportRefused(
            "The model",
            f"{cause}: {', '.join(nodes[:5])} {'is' if len(nodes) == 1 else 'are'} active",
            action if forced else f"Call `model.eval()` before you log the model. If it was called: {action}",
            code="train_mode",
        )


def uses_batch_statistics(model: torch.nn.Module | torch.export.ExportedProgram) -> bool:
    """Return True for a model with a batch norm that keeps no running statistics.

    It normalises by the statistics of the batch in evaluation mode, too, so a row's output depends on the other rows.
    """
    if not isinstance(model, torch.export.ExportedProgram):
        norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
        return any(norm.running_mean is None for norm in norms)
    return any(_keeps_no_statistics(node) for node in _operators(model))


def training_nodes(program: torch.export.ExportedProgram) -> list[str]:
    """Return the operators in training mode (``dropout``, ``batch_norm``, …), each with the name of its node.

    The operator's own flag decides, so the same operator in eval mode passes. A dropout of rate 0, the default of an
    LSTM, changes nothing and passes too, and so does a batch norm without running statistics. Code under `no_grad` or
    in a `cond` is a separate graph inside the program, which is searched as well.
    """
    return [
        f"{node.target._schema.name.removeprefix('aten::')} ({node.name})"
        for node in _operators(program)
        if _is_training(node) and not _keeps_no_statistics(node)
    ]


def _operators(program: torch.export.ExportedProgram) -> Iterator[Any]:
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if node.op == "call_function" and isinstance(node.target, OpOverload):
                    yield node


def _keeps_no_statistics(node: Any) -> bool:
    """Return True for a batch norm that has no running statistics, so its flag of training means nothing."""
    return "batch_norm" in node.target._schema.name and _arguments(node).get("running_mean") is None


def _arguments(node: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        default = node.kwargs.get(argument.name, argument.default_value)
        arguments[argument.name] = node.args[position] if position < len(node.args) else default
    return arguments


def _is_training(node: Any) -> bool:
    arguments = _arguments(node)
    if arguments.get("dropout_p", 0.0) != 0.0:  # attention has a rate and no flag
        return True
    if not any(arguments.get(flag) is True for flag in _FLAGS):
        return False
    return all(arguments[rate] != 0 for rate in _RATES if rate in arguments)
