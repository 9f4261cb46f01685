"""A record: an immutable dataclass that travels as a plain dict, and comes back checked field by field."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

from onnx_release.errors import Refused

T = TypeVar("T", bound="Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record that turns into a JSON-safe dict and back; an unknown, missing or mistyped field is refused."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested dicts, lists, strings, numbers and None; a NaN or infinity becomes None (JSON has neither)."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Rebuild the record; raises `Refused` naming the field when `data` is not one of these."""
        return _build(cls, data, cls.__name__)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _hints(cls: type[Record]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _wrong(where: str, data: object, wanted: str) -> Refused:
    return Refused(
        where,
        f"is {data!r:.80}, not {wanted}",
        "Correct it where it was given, or rerun the step that wrote it.",
    )


def _build(cls: type[T], data: object, where: str) -> T:
    if not isinstance(data, dict):
        raise _wrong(where, data, f"a dict of {cls.__name__}'s fields")
    hints = _hints(cls)
    if unknown := sorted(map(str, set(data) - set(hints))):
        raise _wrong(f"{where}.{unknown[0]}", data[unknown[0]], f"a field of {cls.__name__}")
    values = {}
    for f in dataclasses.fields(cls):
        if f.name in data:
            values[f.name] = _convert(hints[f.name], data[f.name], f"{where}.{f.name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise _wrong(f"{where}.{f.name}", "missing", "optional")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, where)
    if origin is Literal:
        if value in args:
            return value
        raise _wrong(where, value, " or ".join(map(repr, args)))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(where, value, "a list")
        return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, value, "a dict")
        return {key: _convert(args[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, Record):
        return _build(hint, value, where)
    return _convert_scalar(hint, value, where)


def _convert_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    scalars = [option for option in options if option is not type(None)]
    for option in scalars[:-1]:
        try:
            return _convert(option, value, where)
        except Refused:
            continue
    return _convert(scalars[-1], value, where)


def _convert_scalar(hint: type, value: Any, where: str) -> Any:
    # bool is an int to Python, but `passed: 1` or `opset: true` in a record is a mistake.
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is hint:
        return value
    raise _wrong(where, value, f"of type {hint.__name__}")
