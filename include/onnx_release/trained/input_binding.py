"""Binding of a signature's inputs to the arguments of a model: a module, a script or an exported program."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.utils import _pytree as pytree

from onnx_release.errors import TrainedModelRefused
from onnx_release.trained.forward_parameters import container_of, forward_parameters, is_tensor
from onnx_release.trained.name_matching import Match, Place, find_known, match_names

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the keyword arguments of a call."""

_ORDERED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ARGS, _KWARGS = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBinding:
    """Places of named inputs in the arguments of a model.

    Attributes:
        order: The inputs in the order in which the model takes them.
        own_names: The model's own name of each input, by its name in the signature.
        ordered: The inputs that bound by order.
        arguments: Returns the arguments of a call, from one value per input by name.
        nodes: The input of each node in the graph of a program; empty for a module.
        fixed: The arguments of a program that its trace fixed, such as a number or None, by name.
    """

    order: tuple[str, ...]
    own_names: dict[str, str]
    ordered: tuple[str, ...]
    arguments: Callable[[Mapping[str, Any]], Arguments]
    nodes: dict[str, str] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)


def bind_inputs(model: torch.nn.Module | torch.export.ExportedProgram, names: Sequence[str]) -> InputBinding:
    """Bind each input of the signature to an argument of the model.

    A known name binds by name: a parameter of ``forward``, an argument of a script, and in a program also the key of a
    dict. Parameters with a default may be left out. The only parameter of a model receives several unknown names as one
    dict. A parameter that is annotated as a dict, list, tuple, named tuple or dataclass receives the unknown names.
    Without any known name, inputs bind by order.

    Raises:
        TrainedModelRefused: The signature mixes names of the model with others (``mixed_inputs``), or does not name
            the inputs that the model needs (``inputs_differ``).
    """
    if isinstance(model, torch.export.ExportedProgram):
        return _bind_program(model, names)
    return _ForwardBinding(names, forward_parameters(model)).bind()


def _bind_program(program: torch.export.ExportedProgram, names: Sequence[str]) -> InputBinding:
    """Bind the inputs of a program. Arguments that its trace fixed, such as a number or None, keep their value."""
    specs = [spec.arg for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    structure = program.call_spec.in_spec
    leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten([torch.empty(0) for _ in specs], structure))
    call = program.module_call_graph[0].signature if program.module_call_graph else None
    parameters = list(getattr(call, "forward_arg_names", None) or ())
    tensors = [index for index, spec in enumerate(specs) if isinstance(spec, TensorArgument)]
    places = [_place(str(specs[index].name), leaves[index][0], parameters) for index in tensors]
    if numbers := [spec.name for spec in specs if not isinstance(spec, TensorArgument | ConstantArgument)]:
        raise TrainedModelRefused(
            "The exported program",
            f"has inputs that are neither tensors nor constants: {', '.join(map(str, numbers))}",
            "Export it with a fixed number, or make the input a tensor.",
            code="inputs_differ",
        )
    match = match_names(names, places)
    if match.unknown or len(match.found) < len(places):
        raise _refused("The exported program", [place.name for place in places], names, match)
    name_at = {tensors[index]: name for name, index in match.found.items()}
    constants = [getattr(spec, "value", None) for spec in specs]

    def arguments(values: Mapping[str, Any]) -> Arguments:
        flat = [values[name_at[i]] if i in name_at else constant for i, constant in enumerate(constants)]
        positional, keywords = pytree.tree_unflatten(flat, structure)
        return tuple(positional), dict(keywords)

    return InputBinding(
        order=tuple(name_at[index] for index in sorted(name_at)),
        own_names={name: places[index].name for name, index in match.found.items()},
        ordered=match.ordered,
        arguments=arguments,
        nodes={specs[index].name: name_at[index] for index in sorted(name_at)},
        fixed={spec.name: spec.value for spec in specs if isinstance(spec, ConstantArgument)},
    )


def program_example(program: torch.export.ExportedProgram, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the tensors that a program was traced with, by the input's name; an empty dict if it has none."""
    nodes = bind_inputs(program, names).nodes
    specs = [spec.arg for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    leaves = pytree.tree_leaves(program.example_inputs)
    if len(leaves) != len(specs):
        return {}
    found = {nodes[spec.name]: leaf for spec, leaf in zip(specs, leaves, strict=True) if spec.name in nodes}
    return {name: found[name] for name in names} if all(isinstance(v, torch.Tensor) for v in found.values()) else {}


def _place(node: str, path: Sequence[Any], parameters: Sequence[str]) -> Place:
    """Return the place of a tensor. `path` leads through (positional arguments, keyword arguments)."""
    _, first, *rest = path
    if isinstance(first, pytree.MappingKey):
        parameter = str(first.key)
    else:
        parameter = parameters[first.idx] if first.idx < len(parameters) else node
    keys = [re.sub(r"^[\[.']+|[\]']+$", "", str(key)) for key in rest]
    return Place(
        name=".".join((parameter, *keys)),
        aliases=(node, ".".join(keys)) if keys else (node,),
        key="" if not rest or isinstance(rest[-1], pytree.SequenceKey) else keys[-1],
    )


@dataclass(slots=True)
class _ForwardBinding:
    """One binding of names to the parameters of a ``forward``.

    Attributes:
        names: The inputs of the signature.
        parameters: The parameters of ``forward``.
        single: The input of each parameter that takes one tensor.
        groups: The type of the container and its inputs by key, of each parameter that takes several.
        extra: The inputs for ``*args``.
        keywords: The inputs for ``**kwargs``.
        ordered: The inputs that bound by order.
    """

    names: Sequence[str]
    parameters: Sequence[inspect.Parameter]
    single: dict[str, str] = field(default_factory=dict)
    groups: dict[str, tuple[Callable[..., Any], dict[str, str]]] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    ordered: tuple[str, ...] = ()

    def bind(self) -> InputBinding:
        """Return the binding, or refuse the names."""
        named = [parameter for parameter in self.parameters if parameter.kind not in (_ARGS, _KWARGS)]
        found, _ = find_known(self.names, [Place(name=parameter.name) for parameter in named])
        self.single = {named[index].name: name for name, index in found.items()}
        free = [parameter for parameter in named if parameter.name not in self.single]
        unknown = self._bind_prefixed(tuple(name for name in self.names if name not in found), free)
        free = [parameter for parameter in free if parameter.name not in self.groups]
        own = [str(p) if p.kind in (_ARGS, _KWARGS) else p.name for p in self.parameters]
        if unknown and not self._bind_unknown(unknown, free):
            raise _refused("The model", own, self.names, Match(found=found, unknown=unknown))
        if any(p.default is p.empty and p.name not in self.single | self.groups for p in free):
            raise _refused("The model", own, self.names, Match(found=found))
        return InputBinding(
            order=self._order(), own_names=self._own_names(), ordered=self.ordered, arguments=self._arguments
        )

    def _bind_prefixed(self, unknown: tuple[str, ...], free: Sequence[inspect.Parameter]) -> tuple[str, ...]:
        """Bind names such as ``batch.image`` and ``xs_0`` to parameters that take a container. Return the others."""
        for parameter in free:
            if (container := container_of(parameter)) is None:
                continue
            keys = _indexed(parameter.name, unknown)
            if container not in (list, tuple):
                prefix = f"{parameter.name}."
                keys = {name.removeprefix(prefix): name for name in unknown if name.startswith(prefix)}
            if keys:
                self.groups[parameter.name] = container, keys
                unknown = tuple(name for name in unknown if name not in keys.values())
        return unknown

    def _bind_unknown(self, unknown: tuple[str, ...], free: Sequence[inspect.Parameter]) -> bool:
        """Bind the names that no parameter has. Return False if that would be a guess."""
        variadic = {parameter.kind for parameter in self.parameters} & {_ARGS, _KWARGS}
        required = [parameter for parameter in free if parameter.default is parameter.empty]
        container = container_of(required[0]) if len(required) == 1 else None
        if len(unknown) > 1 and len(self.parameters) == len(required) == 1 and not is_tensor(required[0]):
            container = container or dict
        if container is not None:
            is_list = container in (list, tuple)
            self.groups[required[0].name] = container, {str(i) if is_list else n: n for i, n in enumerate(unknown)}
            self.ordered = unknown if is_list else ()
            return True
        places = [parameter.name for parameter in free if parameter.kind in _ORDERED]
        if _KWARGS in variadic and (not free if self.single else not places and _ARGS not in variadic):
            self.keywords = unknown
            return True
        # With a parameter left over, an unknown name may be that parameter under another name.
        if self.single and (free or not variadic):
            return False
        if len(unknown) > len(places) and _ARGS not in variadic and self.parameters:
            return False
        self.single |= dict(zip(places, unknown, strict=False))
        variable = next((p.name for p in self.parameters if p.kind is _ARGS), "")
        rest = unknown[len(places) :]
        indexed = tuple(_indexed(variable, rest).values())
        self.extra = indexed if len(indexed) == len(rest) else rest
        self.ordered = tuple(name for name in unknown if name not in indexed)
        return True

    def _order(self) -> tuple[str, ...]:
        of: dict[str, tuple[str, ...]] = {parameter: (name,) for parameter, name in self.single.items()}
        of |= {parameter: tuple(keys.values()) for parameter, (_, keys) in self.groups.items()}
        first = [name for p in self.parameters if p.kind in _ORDERED for name in of.get(p.name, ())]
        last = [name for p in self.parameters if p.kind not in _ORDERED for name in of.get(p.name, ())]
        return (*first, *self.extra, *last, *self.keywords)

    def _own_names(self) -> dict[str, str]:
        own = {name: name for name in self.keywords} | {name: parameter for parameter, name in self.single.items()}
        for parameter, (_, keys) in self.groups.items():
            own |= {name: f"{parameter}.{key}" for key, name in keys.items()}
        return own | {name: f"argument {len(self.single) + index}" for index, name in enumerate(self.extra, start=1)}

    def _arguments(self, values: Mapping[str, Any]) -> Arguments:
        """Return the arguments by position, in the order of ``forward``, or by keyword if a parameter is left out.

        Exporters name inputs by position.
        """
        bound = {parameter: values[name] for parameter, name in self.single.items()}
        for parameter, (container, keys) in self.groups.items():
            parts = {key: values[name] for key, name in keys.items()}
            bound[parameter] = container(parts.values()) if container in (list, tuple) else container(**parts)
        leading = [p for p in self.parameters if p.kind in _ORDERED and p.name in bound]
        if leading != [p for p in self.parameters if p.kind in _ORDERED][: len(leading)]:
            leading = [p for p in self.parameters if p.kind is inspect.Parameter.POSITIONAL_ONLY]
        positional = [bound.get(p.name, p.default) for p in leading] + [values[name] for name in self.extra]
        keywords = {p.name: bound[p.name] for p in self.parameters if p.name in bound and p not in leading}
        return tuple(positional), keywords | {name: values[name] for name in self.keywords}


def _indexed(parameter: str, names: Sequence[str]) -> dict[str, str]:
    """Return the inputs of a sequence by index: ``xs_1`` or ``xs.1`` is the second one. Empty if one is missing."""
    found: dict[str, str] = {}
    for index in range(len(names)):
        fitting = [name for name in names if name in (f"{parameter}_{index}", f"{parameter}.{index}")]
        if len(fitting) != 1:
            break
        found[str(index)] = fitting[0]
    return found


def _refused(subject: str, own: Sequence[str], names: Sequence[str], match: Match) -> TrainedModelRefused:
    problem = f"takes the inputs {', '.join(own)[:300]}; the signature names {', '.join(names)[:300]}"
    if not (match.found and match.unknown):
        action = "Log the model again with a signature that names every input of `forward`."
        return TrainedModelRefused(subject, problem, action, code="inputs_differ")
    known, unknown = ", ".join(match.found), ", ".join(match.unknown)
    return TrainedModelRefused(
        subject,
        f"{problem}. The signature mixes names of the model ({known}) with others ({unknown})",
        "Use the model's names for all inputs of the signature, and log the model again.",
        code="mixed_inputs",
    )
