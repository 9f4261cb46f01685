"""Export of ``nn.RNN`` with a varying sequence length, as ONNX's operator ``RNN``.

torch 2.13 exports LSTM and GRU with a varying length: it replaces their kernels in the trace and translates both to one
ONNX operator per layer. For RNN it has neither, and its kernel fixes the length of the trace. This file adds both.

Remove when `torch.onnx.export` keeps the length of ``nn.RNN`` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from onnxscript import opset18 as op
from torch import Tensor
from torch._decomp.decompositions import _rnn_helper, gather_params
from torch._higher_order_ops.while_loop import while_loop
from torch.export._patches import _clone_tensors_that_alias, _register_rnn_while_loop_decomposition

_RNN_TANH, _RNN_RELU = torch.ops.aten.rnn_tanh.input, torch.ops.aten.rnn_relu.input
RECURRENT = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input, _RNN_TANH, _RNN_RELU)
"""The recurrent operators whose kernels an export replaces."""


@contextmanager
def rnn_length_kept() -> Iterator[None]:
    """Replace the kernels of RNN by a loop of one step, and clear torch's dispatch cache of all recurrent operators.

    torch 2.13 uses the kernel that it cached in an earlier trace of the process, which freezes the length. So the
    cache is cleared before and after an export.
    """
    for overload in RECURRENT:
        overload._dispatch_cache.clear()
    try:
        with ExitStack() as stack:
            for overload, activation in ((_RNN_TANH, torch.tanh), (_RNN_RELU, torch.relu)):
                kernel = partial(_rnn_with_loop, activation)
                stack.enter_context(_register_rnn_while_loop_decomposition(overload, kernel))
            yield
    finally:
        for overload in RECURRENT:
            overload._dispatch_cache.clear()


def translations() -> dict[Any, Callable[..., Any]]:
    """Return the translations to ONNX by torch operator, for ``torch.onnx.export(custom_translation_table=…)``."""
    return {_RNN_TANH: _rnn_tanh, _RNN_RELU: _rnn_relu}


def _rnn_with_loop(
    activation: Callable[[Tensor], Tensor],
    inputs: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    """Compute ``aten::rnn_tanh.input`` or ``aten::rnn_relu.input``, as torch's replacements for LSTM and GRU do."""
    layers = gather_params(params, has_biases, False)
    layer = partial(_layer_with_loop, activation)
    out, hidden = _rnn_helper(inputs, hx.unbind(0), layers, has_biases, *options, layer)  # type: ignore[call-arg]
    return out, torch.stack(hidden, 0)


def _layer_with_loop(
    activation: Callable[[Tensor], Tensor],
    inputs: Tensor,
    hidden: Tensor,
    params: Sequence[Tensor],
    has_biases: bool,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    weight, recurrent = params[0], params[1]
    bias, recurrent_bias = (params[2], params[3]) if has_biases else (None, None)
    steps = torch.nn.functional.linear(inputs, weight, bias)
    steps = steps.flip(0) if reverse else steps
    recurrent, recurrent_bias = _clone_tensors_that_alias((recurrent, recurrent_bias))

    def unfinished(index: Tensor, out: Tensor, hidden: Tensor) -> Any:
        return index < steps.size(0)

    def step(index: Tensor, out: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        position: Any = index.item()
        torch._check_is_size(position)
        torch._check_is_size(position, max=steps.size(0) - 1)
        hidden = activation(torch.nn.functional.linear(hidden, recurrent, recurrent_bias) + steps[position])
        out = out.clone()
        out[position] = hidden
        return index + 1, out, hidden

    empty = torch.empty(steps.size(0), *hidden.shape, dtype=hidden.dtype, device=hidden.device)
    _, out, hidden = while_loop(unfinished, step, (torch.tensor(0, dtype=torch.int64), empty, hidden))
    return (out.flip(0) if reverse else out), hidden


def _rnn_tanh(*arguments: Any) -> tuple[Any, Any]:
    return _rnn("Tanh", *arguments)


def _rnn_relu(*arguments: Any) -> tuple[Any, Any]:
    return _rnn("Relu", *arguments)


def _rnn(
    activation: str,
    inputs: Any,
    hx: Any,
    params: Sequence[Any],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, Any]:
    """Translate ``aten::rnn_tanh.input`` or ``aten::rnn_relu.input``: one ONNX operator per layer."""
    directions = 2 if bidirectional else 1
    count = 4 if has_biases else 2
    hidden = []
    current = op.Transpose(inputs, perm=[1, 0, 2]) if batch_first else inputs
    for layer in range(num_layers):
        first = layer * directions
        sides = [params[count * side : count * (side + 1)] for side in range(first, first + directions)]
        weight = op.Concat(*[op.Unsqueeze(side[0], [0]) for side in sides], axis=0)
        recurrent = op.Concat(*[op.Unsqueeze(side[1], [0]) for side in sides], axis=0)
        bias = None
        if has_biases:
            biases = [op.Unsqueeze(op.Concat(side[2], side[3], axis=0), [0]) for side in sides]
            bias = op.Concat(*biases, axis=0)
        outputs, last = op.RNN(
            current,
            weight,
            recurrent,
            bias,
            None,
            op.Slice(hx, [first], [first + directions], [0]),
            activations=[activation] * directions,
            direction="bidirectional" if bidirectional else "forward",
            hidden_size=hx.shape[2],
        )
        # From (length, directions, batch, hidden) to (length, batch, directions * hidden).
        current = op.Reshape(op.Transpose(outputs, perm=[0, 2, 1, 3]), [0, 0, -1])
        hidden.append(last)
    return (
        op.Transpose(current, perm=[1, 0, 2]) if batch_first else current,
        op.Concat(*hidden, axis=0) if len(hidden) > 1 else hidden[0],
    )
