"""How a model is called with named tensors, and how what it returns gets names: the same at export and in the tests."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from onnx_release.errors import Refused


def arguments_for(
    model: torch.nn.Module, names: Sequence[str], values: Sequence[Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that hand `values` to the model's ``forward``.

    By keyword when every name is one of its parameters, as one dict when it takes a single argument and there are
    more, else in order.
    """
    parameters = _parameters(model)
    named = dict(zip(names, values, strict=True))
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    keywords = {name for name, kind in kinds.items() if kind in (_BOTH, inspect.Parameter.KEYWORD_ONLY)}
    if set(names) <= keywords:
        # In forward's own order, so that a positional argument stays one: exporters name by position.
        leading = [name for name in kinds if kinds[name] == _BOTH][: len(names)]
        if set(leading) == set(names):
            return tuple(named[name] for name in leading), {}
        return (), {name: named[name] for name in kinds if name in named}
    required = [name for name, p in parameters.items() if p.default is p.empty and p.kind == _BOTH]
    takes_more = any(kind == inspect.Parameter.VAR_POSITIONAL for kind in kinds.values())
    if len(names) > 1 and len(required) <= 1 and len(kinds) == 1 and not takes_more:
        return (named,), {}
    return tuple(values), {}


_BOTH = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _parameters(model: torch.nn.Module) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # a scripted module's forward is no Python function
        return {}


class FlatModule(torch.nn.Module):
    """A model with tensors in, by position and in the order of `input_names`, and a flat tuple of tensors out.

    `output_names` are those to be given, in this order; None takes every tensor, and `found_names` says after a call
    what they are called: ``logits``, ``past.0.key``, or ``output`` and ``output_0`` where the model gives no names.
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
        """Call the model; raises `Refused` when it gives something that is no tensor, or other outputs."""
        arguments, keywords = arguments_for(self.model, self.input_names, tensors)
        named = name_outputs(self.model(*arguments, **keywords), self.output_names)
        self.found_names = tuple(named)
        return tuple(named.values())


def name_outputs(result: Any, names: Sequence[str] | None) -> dict[str, torch.Tensor]:
    """Give names to what a model returned: a tensor, or any nesting of tuples, lists, dicts and caches of tensors.

    A model that names its outputs (a dict, a record) is taken by name, and what was not asked for is left out; all
    else is taken in order. None in it is no output.

    :param names: those to be given; None takes all, under the names that the model's own structure has.
    :raises Refused: when the count differs, or something is no tensor that numpy can hold.
    """
    leaves = _named_leaves(result)
    if names is not None:
        own = dict(leaves)
        if set(names) <= set(own) and isinstance(result, Mapping):
            leaves = [(name, own[name]) for name in names]
        elif len(leaves) == len(names):
            leaves = [(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]
    strange = [f"{type(leaf).__name__} '{name}'" for name, leaf in leaves if not isinstance(leaf, torch.Tensor)]
    strange += [f"{leaf.dtype} '{name}'" for name, leaf in leaves if _has_no_numpy(leaf)]
    found = [name for name, _ in leaves]
    if strange or not leaves or (names is not None and found != list(names)):
        wanted = "" if names is None else f", and the signature names {len(names)} outputs: {', '.join(names)}"
        raise Refused(
            "What the PyTorch model returns",
            f"is {len(leaves)} values ({', '.join(found)[:300]}){f', of them {strange}' if strange else ''}{wanted}",
            "Return plain tensors, and log the model again with a signature that names each of them.",
        )
    return dict(leaves)


def _has_no_numpy(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.bfloat16, torch.complex64, torch.complex128)


def _named_leaves(result: Any) -> list[tuple[str, Any]]:
    if isinstance(result, torch.Tensor):
        return [("output", result)]
    paths, _ = pytree.tree_flatten_with_path(_without_caches(result))
    leaves = [(_name(path), leaf) for path, leaf in paths if leaf is not None]
    if len({name for name, _ in leaves}) == len(leaves):
        return leaves
    return [(f"output_{index}", leaf) for index, (_, leaf) in enumerate(leaves)]


def _without_caches(result: Any) -> Any:
    """Open the caches of attention (objects with layers of keys and values), which no pytree knows."""
    if isinstance(result, Mapping):
        return {key: _without_caches(value) for key, value in result.items()}
    if type(result) in (tuple, list):
        return [_without_caches(value) for value in result]
    layers = getattr(result, "layers", None)
    if layers is not None and all(hasattr(layer, "keys") and hasattr(layer, "values") for layer in layers):
        return [{"key": layer.keys, "value": layer.values} for layer in layers]
    return result


def _name(path: Sequence[Any]) -> str:
    parts = [re.sub(r"^[\[.']+|[\]']+$", "", str(key)) for key in path]
    # A bare number says nothing of its own.
    return f"output_{parts[0]}" if len(parts) == 1 and parts[0].isdigit() else ".".join(parts)


def runnable(model: torch.nn.Module, names: Sequence[str]) -> Callable[..., Any]:
    """Return a function of one tensor per name, in that order, that calls the model as `arguments_for` says."""

    def call(*values: torch.Tensor) -> Any:
        arguments, keywords = arguments_for(model, names, values)
        return model(*arguments, **keywords)

    return call
