"""Names of the tensors that a model returns."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch.utils import _pytree as pytree

from onnx_release.errors import TrainedModelRefused
from onnx_release.trained.name_matching import Match, Place, match_names

# numpy has no bfloat16, and parity has no measures for complex values.
_UNSUPPORTED_DTYPES = (torch.bfloat16, torch.complex64, torch.complex128)


class Step(NamedTuple):
    """One step from a container to a value in it.

    Attributes:
        kind: The access: ``key`` of a dict, ``index`` of a tuple or list, or ``field``.
        key: The key, the index or the name of the field.
    """

    kind: Literal["key", "index", "field"]
    key: Any


Path = tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputBinding:
    """Places of named outputs in the result of a model.

    Attributes:
        paths: The steps from the result to each output, by its name in the signature.
        own_names: The model's own name of each output, by its name in the signature.
        ordered: The outputs that bound by order.
        dropped: The model's names of the values that the signature does not name.
    """

    paths: dict[str, Path]
    own_names: dict[str, str]
    ordered: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


def name_outputs(result: Any, names: Sequence[str] | None) -> dict[str, torch.Tensor]:
    """Return the tensors of a result by name; see `bind_outputs`.

    Raises:
        TrainedModelRefused: As for `bind_outputs`, or a value is not a tensor of a supported dtype.
    """
    leaves = dict(_leaves(result, ()))
    binding = _bind(tuple(leaves), None if names is None else tuple(names))
    tensors = {name: leaves[path] for name, path in binding.paths.items()}
    unsupported = [
        f"{leaf.dtype if isinstance(leaf, torch.Tensor) else type(leaf).__name__} '{name}'"
        for name, leaf in tensors.items()
        if not isinstance(leaf, torch.Tensor) or leaf.dtype in _UNSUPPORTED_DTYPES
    ]
    if unsupported:
        raise TrainedModelRefused(
            "The PyTorch model",
            f"returns {', '.join(unsupported)[:300]}, which cannot be an output",
            "Return tensors of floats, integers or booleans; torch.view_as_real splits complex numbers.",
            code="outputs_differ",
        )
    return tensors


def bind_outputs(result: Any, names: Sequence[str] | None) -> OutputBinding:
    """Bind the names of the outputs to the tensors that a model returned.

    Args:
        result: A tensor, or nested tuples, lists, dicts, named tuples, dataclasses and attention caches of tensors.
            None in it is not an output.
        names: The names of the outputs. Keys and fields bind by name, and a value that no name fits is dropped; see
            `match_names`. None names every tensor after its place in the structure: ``logits``, ``past.0.key``, or
            ``output`` and ``output_0`` for results without names.

    Raises:
        TrainedModelRefused: The number of values differs from `names` (``outputs_differ``), or the signature mixes
            names of the model with others (``mixed_outputs``).
    """
    return _bind(tuple(path for path, _ in _leaves(result, ())), None if names is None else tuple(names))


@lru_cache(maxsize=64)  # every call of a model returns the same structure
def _bind(paths: tuple[Path, ...], names: tuple[str, ...] | None) -> OutputBinding:
    places = _places(paths)
    if names is None:
        match, names = Match(found={place.name: index for index, place in enumerate(places)}), ()
    else:
        match = match_names(names, places)
    if match.unknown or not match.found:
        raise _refused(places, names, match)
    found = {name: match.found[name] for name in names or match.found}
    return OutputBinding(
        paths={name: paths[index] for name, index in found.items()},
        own_names={name: places[index].name for name, index in found.items()},
        ordered=match.ordered,
        dropped=tuple(place.name for index, place in enumerate(places) if index not in found.values()),
    )


def _refused(places: Sequence[Place], names: Sequence[str], match: Match) -> TrainedModelRefused:
    own = ", ".join(place.name for place in places)[:300]
    problem = f"returns {len(places)} values ({own}); the signature names {len(names)} outputs: {', '.join(names)}"
    if not match.found:
        action = "Return plain tensors, and log the model again with a signature that names each of them."
        return TrainedModelRefused("The PyTorch model", problem, action, code="outputs_differ")
    known, unknown = ", ".join(match.found), ", ".join(match.unknown)
    return TrainedModelRefused(
        "The PyTorch model",
        f"{problem}. The signature mixes names of the model ({known}) with others ({unknown})",
        "Use the model's names for all outputs of the signature, and log the model again.",
        code="mixed_outputs",
    )


def _places(paths: Sequence[Path]) -> list[Place]:
    places = []
    for path in paths:
        name = ".".join(str(step.key) for step in path) or "output"
        # A bare number would not be a useful name.
        indices = len(path) == 1 and name.isdigit()
        places.append(
            Place(
                name=f"output_{name}" if indices else name,
                aliases=(name,) if indices and path[0].kind != "index" else (),
                key=str(path[-1].key) if path and path[-1].kind != "index" else "",
                named=any(step.kind != "index" for step in path),
            )
        )
    if max(Counter(place.name for place in places).values(), default=0) > 1:
        return [dataclasses.replace(place, name=f"output_{i}") for i, place in enumerate(places)]
    return places


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield each value that a result contains, with the steps to it. None is skipped."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif (steps := _steps(value)) is not None:
        for step, part in steps:
            yield from _leaves(part, (*path, step))
    elif value is not None:
        yield path, value


def _steps(value: Any) -> list[tuple[Step, Any]] | None:
    """Return the parts of a container, or None for another value."""
    if isinstance(value, Mapping):
        return [(Step("key", key), part) for key, part in value.items()]
    if pytree.is_namedtuple_instance(value) or pytree.is_structseq_instance(value):
        # torch.topk and torch.max return such a tuple of their own.
        return [(Step("field", name), getattr(value, name)) for name in type(value).__match_args__]
    if isinstance(value, tuple | list):
        return [(Step("index", index), part) for index, part in enumerate(value)]
    layers = getattr(value, "layers", None)
    if isinstance(layers, list) and all(hasattr(layer, "keys") and hasattr(layer, "values") for layer in layers):
        # An attention cache.
        return [
            (Step("index", index), {"key": layer.keys, "value": layer.values}) for index, layer in enumerate(layers)
        ]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return [(Step("field", name), getattr(value, name)) for name in names]
    flat, _ = pytree.tree_flatten_with_path(value)
    if [path for path, _ in flat] == [()]:
        return None
    return [(Step("key", pytree.keystr(path).strip("[].'")), part) for path, part in flat]
