"""Parameters of a model's ``forward``: of a module, of the model inside a wrapper, or of a script."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

_SCRIPT_TYPES = {"TensorType": torch.Tensor, "DictType": dict, "ListType": list, "TupleType": tuple}
_VARIADIC = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def forward_parameters(model: torch.nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of the model's ``forward``; an empty list if they cannot be read.

    A ``forward(*args, **kwargs)`` that wraps one function, or a module with one child, has the parameters of these.
    """
    if isinstance(model, torch.jit.ScriptModule):
        schema = getattr(getattr(model, "forward", None), "schema", None)
        return [_script_parameter(argument) for argument in schema.arguments[1:]] if schema is not None else []
    parameters = _read(model.forward)
    if {parameter.kind for parameter in parameters} != _VARIADIC:
        return parameters
    function = getattr(model.forward, "__func__", model.forward)
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    wrapped = [_without_self(_read(each)) for each in cells if inspect.isroutine(each)]
    wrapped = wrapped or [forward_parameters(child) for child in model.children()]
    return wrapped[0] if len(wrapped) == 1 else parameters


def container_of(parameter: inspect.Parameter) -> Callable[..., Any] | None:
    """Return the type that makes a container of several tensors for an annotated parameter, or None.

    The type is ``dict``, ``list``, ``tuple``, or the parameter's own named tuple or dataclass.
    """
    annotation: Any = parameter.annotation
    kind = getattr(annotation, "__origin__", annotation)
    if isinstance(kind, type):
        if pytree.is_namedtuple_class(kind) or hasattr(kind, "__dataclass_fields__"):
            return kind
        for container, base in ((dict, Mapping), (tuple, tuple), (list, Sequence)):
            if issubclass(kind, base):
                return container
        return None
    # An annotation that cannot be evaluated is a text.
    found = re.match(r"(?:typing\.)?(dict|mapping|mutablemapping|list|sequence|tuple)\b", str(annotation).lower())
    kinds = {"list": list, "sequence": list, "tuple": tuple}
    return kinds.get(found[1], dict) if found else None


def is_tensor(parameter: inspect.Parameter) -> bool:
    """Return True for a parameter that is annotated as one tensor."""
    return parameter.annotation is torch.Tensor or str(parameter.annotation) in ("Tensor", "torch.Tensor")


def _read(function: Any) -> list[inspect.Parameter]:
    for evaluate in (True, False):
        try:
            return list(inspect.signature(function, eval_str=evaluate).parameters.values())
        except Exception:  # noqa: BLE001, S112 - an annotation that is evaluated can raise anything
            continue
    return []


def _without_self(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    return parameters[1:] if parameters and parameters[0].name == "self" else parameters


def _script_parameter(argument: Any) -> inspect.Parameter:
    return inspect.Parameter(
        argument.name,
        inspect.Parameter.KEYWORD_ONLY if argument.kwarg_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=argument.default_value if argument.has_default_value() else inspect.Parameter.empty,
        annotation=_SCRIPT_TYPES.get(argument.type.kind(), inspect.Parameter.empty),
    )
