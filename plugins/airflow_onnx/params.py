"""Typed values from templated operator arguments.

Airflow renders a template to text. An argument that is not text by nature (a number, a list, an object) is therefore
given as JSON, ``"{{ params.batch_sizes | tojson }}"``, and read back here; a value that is no text is taken as it is.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from onnx_release.errors import Refused
from onnx_release.records.base import Record

R = TypeVar("R", bound=Record)


def value(argument: Any) -> Any:
    """Return what the JSON text says; text that is no JSON, and anything that is no text, is returned unchanged."""
    if not isinstance(argument, str):
        return argument
    try:
        return json.loads(argument)
    except ValueError:
        return argument


def settings(cls: type[R], arguments: dict[str, Any], **more: Any) -> R:
    """Build a settings record from templated fields; empty text counts as not given, so the default holds."""
    read = {name: value(argument) for name, argument in (arguments | more).items()}
    return cls.from_dict({name: item for name, item in read.items() if item != ""})


def record(cls: type[R], argument: object, task: str) -> R:
    """Read the record that an upstream task returned; raises `Refused` naming the task when there is none."""
    found = optional_record(cls, argument)
    if found is None:
        raise Refused(
            f"the {cls.__name__} of task '{task}'",
            "is missing from XCom",
            f"Clear the task '{task}' with its downstream tasks, so that it runs again.",
        )
    return found


def optional_record(cls: type[R], argument: object) -> R | None:
    """Read a record, or None where the task that returns it has not run."""
    data = value(argument)
    return None if data is None or data == "" else cls.from_dict(data)


def optional_integer(argument: Any, name: str, low: int, high: int) -> int | None:
    """Read a whole number or nothing; raises `Refused` naming `name` and the limits."""
    number = value(argument)
    return None if number in (None, "") else _in_range(number, name, low, high)


def integers(argument: Any, name: str, low: int, high: int) -> tuple[int, ...]:
    """Read a non-empty list of whole numbers, without duplicates and sorted; raises `Refused` naming `name`."""
    items = value(argument)
    if not isinstance(items, list | tuple) or not items:
        raise Refused(f"parameter '{name}'", f"is {items!r}", "Give a list of whole numbers, for example [1, 8, 32].")
    return tuple(sorted({_in_range(item, name, low, high) for item in items}))


def _in_range(number: Any, name: str, low: int, high: int) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
        raise Refused(f"parameter '{name}'", f"is {number!r}", f"Give whole numbers from {low} to {high}.")
    return number
