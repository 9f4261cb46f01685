"""Calls of a model with named tensors, and names of its outputs. Export and comparison share these rules."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from onnx_release.errors import TrainedModelRefused

_BOTH = inspect.Parameter.POSITIONAL_OR_KEYWORD
# numpy has no bfloat16, and parity has no measures for complex values.
_UNSUPPORTED_DTYPES = (torch.bfloat16, torch.complex64, torch.complex128)


def arguments_for(
    model: torch.nn.Module, names: Sequence[str], values: Sequence[Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Bind values to the parameters of the model's ``forward``.

    Values bind by name when every name is a parameter. A model with a single parameter receives several values as one
    dict. In every other case values bind in their order.

    Args:
        model: The model.
        names: The names of the inputs.
        values: One value per name.

    Returns:
        The positional and the keyword arguments.
    """
    parameters: Mapping[str, inspect.Parameter] = {}
    # The forward of a scripted module is not a Python function.
    with contextlib.suppress(TypeError, ValueError):
        parameters = inspect.signature(model.forward).parameters
    named = dict(zip(names, values, strict=True))
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    keywords = {name for name, kind in kinds.items() if kind in (_BOTH, inspect.Parameter.KEYWORD_ONLY)}
    if set(names) <= keywords:
        # Arguments stay positional where possible, in forward's order: exporters name inputs by position.
        leading = [name for name in kinds if kinds[name] == _BOTH][: len(names)]
        if set(leading) == set(names):
            return tuple(named[name] for name in leading), {}
        return (), {name: named[name] for name in kinds if name in named}
    required = [name for name, p in parameters.items() if p.default is p.empty and p.kind == _BOTH]
    takes_more = any(kind == inspect.Parameter.VAR_POSITIONAL for kind in kinds.values())
    if len(names) > 1 and len(required) <= 1 and len(kinds) == 1 and not takes_more:
        return (named,), {}
    return tuple(values), {}


def runnable(model: torch.nn.Module, names: Sequence[str]) -> Callable[..., Any]:
    """Return a function of one tensor per name that calls the model as `arguments_for` binds them."""

    def call(*values: torch.Tensor) -> Any:
        arguments, keywords = arguments_for(model, names, values)
        return model(*arguments, **keywords)

    return call


class FlatModule(torch.nn.Module):
    """Wrapper of a model that takes tensors by position and returns a flat tuple of tensors.

    Attributes:
        input_names: The inputs in their order.
        output_names: The outputs to return, in their order; None for every output.
        found_names: The names of the outputs of the last call, as `name_outputs` gives them.
    """

    def __init__(
        self, model: torch.nn.Module, input_names: Sequence[str], output_names: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.input_names = tuple(input_names)
        self.output_names = None if output_names is None else tuple(output_names)
        self.found_names: tuple[str, ...] = ()

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call the model and return its outputs in the order of `output_names`."""
        arguments, keywords = arguments_for(self.model, self.input_names, tensors)
        named = name_outputs(self.model(*arguments, **keywords), self.output_names)
        self.found_names = tuple(named)
        return tuple(named.values())


def name_outputs(result: Any, names: Sequence[str] | None) -> dict[str, torch.Tensor]:
    """Name the tensors that a model returned.

    Args:
        result: A tensor, or nested tuples, lists, dicts, named tuples and attention caches of tensors. None in it is
            not an output.
        names: The names of the outputs. A dict with these keys binds by name, and its other values are dropped. Every
            other result binds in its order. None names every tensor after its place in the structure: ``logits``,
            ``past.0.key``, or ``output`` and ``output_0`` for results without names.

    Raises:
        TrainedModelRefused: The number of tensors differs from `names`, or a value is not a tensor of a supported
            dtype.
    """
    leaves = _named_leaves(result)
    if names is not None:
        by_name = dict(leaves)
        if set(names) <= set(by_name) and isinstance(result, Mapping):
            leaves = [(name, by_name[name]) for name in names]
        elif len(leaves) == len(names):
            leaves = [(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]
    unsupported = [f"{type(leaf).__name__} '{name}'" for name, leaf in leaves if not isinstance(leaf, torch.Tensor)]
    unsupported += [
        f"{leaf.dtype} '{name}'"
        for name, leaf in leaves
        if isinstance(leaf, torch.Tensor) and leaf.dtype in _UNSUPPORTED_DTYPES
    ]
    found = [name for name, _ in leaves]
    if unsupported or not leaves or (names is not None and found != list(names)):
        problem = f"returns {len(leaves)} values ({', '.join(found)[:300]})"
        if unsupported:
            problem += f", of which {', '.join(unsupported)} cannot be an output"
        if names is not None:
            problem += f"; the signature names {len(names)} outputs: {', '.join(names)}"
        raise TrainedModelRefused(
            "The PyTorch model",
            problem,
            "Return plain tensors, and log the model again with a signature that names each of them.",
            code="outputs_differ",
        )
    return dict(leaves)


def _named_leaves(result: Any) -> list[tuple[str, Any]]:
    if isinstance(result, torch.Tensor):
        return [("output", result)]
    paths, _ = pytree.tree_flatten_with_path(_without_caches(result))
    leaves = []
    for path, leaf in paths:
        if leaf is not None:
            parts = [re.sub(r"^[\[.']+|[\]']+$", "", str(key)) for key in path]
            # A bare number would not be a useful name.
            name = f"output_{parts[0]}" if len(parts) == 1 and parts[0].isdigit() else ".".join(parts)
            leaves.append((name, leaf))
    if len({name for name, _ in leaves}) == len(leaves):
        return leaves
    return [(f"output_{index}", leaf) for index, (_, leaf) in enumerate(leaves)]


def _without_caches(result: Any) -> Any:
    """Replace attention caches, which are not pytrees, by lists of their layers' keys and values."""
    if isinstance(result, Mapping):
        return {key: _without_caches(value) for key, value in result.items()}
    if type(result) in (tuple, list):
        return [_without_caches(value) for value in result]
    layers = getattr(result, "layers", None)
    if layers is not None and all(hasattr(layer, "keys") and hasattr(layer, "values") for layer in layers):
        return [{"key": layer.keys, "value": layer.values} for layer in layers]
    return result
