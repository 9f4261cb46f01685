"""Parameters of a DAG: form fields, the templates that pass them to operators, and the readers of rendered templates.

Airflow renders a template to text. A number, a list or an object is therefore passed as JSON,
``"{{ params.batch_sizes | tojson }}"``, and read back by the functions below. They also accept the plain value.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, cast, get_args

from airflow.sdk import Param
from airflow.sdk.exceptions import ParamValidationError

from onnx_release import limits
from onnx_release.errors import ParameterRefused, RecordRefused
from onnx_release.records.base import Record
from onnx_release.text import shorten
from onnx_release.training_runs.names import NamePattern

R = TypeVar("R", bound=Record)


RUN, EXPERTS = "Run Parameters", "Experts"
"""Sections of the forms with few fields. Airflow's form opens only the first one: see `release_params`."""


def field(
    default: Any,
    kind: str,
    section: str,
    title: str,
    help_text: str,
    *,
    may_be_empty: bool | None = None,
    pattern: NamePattern | None = None,
    **schema: Any,
) -> Param:
    """Return a field of the trigger form.

    :param kind: the JSON type.
    :param help_text: plain text. Airflow's form prints Markdown's code over the line above it.
    :param may_be_empty: an empty field is null. None: only a field with the default None. Airflow's form marks every
        other field as required.
    :param pattern: the allowed form of a text.
    """
    types = ["null", kind] if may_be_empty or (may_be_empty is None and default is None) else kind
    if pattern:
        # Airflow's message about a wrong value has only the regular expression, so a comment in it has the words.
        schema |= {"pattern": f"(?#{pattern.words}){pattern.regexp}", "pattern_words": pattern.words}
    return Param(default, type=types, section=section, title=title, description_md=help_text, **schema)


def fields_of(record: type[Record], section: str) -> dict[str, Param]:
    """Return a number field of the form for each field of a record, with its default, title, text and bounds.

    :param record: a record whose fields are numbers or None, with the bounds in `json_schema_extra`.
    """
    return {
        name: field(
            info.default,
            "number",
            section,
            info.title or name,
            info.description or "",
            may_be_empty=_may_be_none(record, name),
            **cast("dict[str, Any]", info.json_schema_extra or {}),
        )
        for name, info in record.model_fields.items()
    }


def with_defaults(fields: dict[str, Param], given: Mapping[str, Any]) -> dict[str, Param]:
    """Return the fields of a form with the given defaults.

    This is the order of all settings of a DAG: the parameter of a DAG run, the argument of the factory, the option of
    `[onnx_release]`, the default of the package. The last two are in the fields, and Airflow applies the first one.

    :param given: arguments of a factory by the name of the field. None leaves the default of the field.
    :raises ParameterRefused: for an unknown name, or a value that the field refuses.
    """
    changed = dict(fields)
    for name, default in given.items():
        if name not in fields:
            raise unknown_name(name, fields)
        if default is not None:
            old = fields[name]
            changed[name] = Param(default, old.description, schema=old.schema)
            require_valid(name, changed[name])
    return changed


def require_valid(name: str, param: Param) -> None:
    """Raise `ParameterRefused` if the default of a field is not a value of the field."""
    try:
        param.resolve()
    except ParamValidationError as error:
        found = error.args[0]
        subject = f"The parameter '{name}{getattr(found, 'json_path', '$').removeprefix('$'):.80}'"
        problem = f"is wrong: {shorten(getattr(found, 'message', found), 300)}"
        raise ParameterRefused(subject, problem, "Correct it.", code="wrong_parameter") from error


def unknown_name(name: str, known: Iterable[str]) -> ParameterRefused:
    """Return the refusal of a parameter that does not exist. Airflow itself accepts every name."""
    close = get_close_matches(name, known, n=1)
    action = f"Use {close[0]!r}." if close else "Remove it. docs/parameters.md lists all."
    return ParameterRefused(f"The parameter {name!r:.80}", "does not exist", action, code="unknown_parameter")


def text_param(name: str) -> str:
    """Return the template of a text parameter. An empty field renders to empty text."""
    return "{{ params.%s or '' }}" % name  # noqa: UP031 - braces are Jinja's


def json_param(name: str) -> str:
    """Return the template of a parameter as JSON, for `value`."""
    return "{{ params.%s | tojson }}" % name  # noqa: UP031 - braces are Jinja's


def text_params(*names: str) -> dict[str, Any]:
    """Return the templates of text parameters by name, for arguments of the same names."""
    return {name: text_param(name) for name in names}


def json_params(*names: str) -> dict[str, Any]:
    """Return the templates of parameters as JSON by name, for arguments of the same names."""
    return {name: json_param(name) for name in names}


def task_text(task_id: str, key: str = "return_value") -> str:
    """Return the template of a text that a task left in XCom. It renders to empty text if there is none."""
    return "{{ ti.xcom_pull(task_ids='%s', key='%s') or '' }}" % (task_id, key)  # noqa: UP031 - braces are Jinja's


def task_record(task_id: str, otherwise: str | None = None) -> str:
    """Return the template of the record that a task returned, as JSON.

    Unlike an XComArg, a template adds no edge to the graph of the DAG.

    :param otherwise: the task whose record it is if the first was skipped.
    """
    pulls = [f"ti.xcom_pull(task_ids='{task}')" for task in (task_id, otherwise) if task]
    return "{{ (%s) | tojson }}" % " or ".join(pulls)  # noqa: UP031 - braces are Jinja's


def value(argument: Any) -> Any:
    """Return the value of a JSON text. Other text, and a value that is not text, is returned unchanged."""
    if not isinstance(argument, str):
        return argument
    try:
        return json.loads(argument)
    except ValueError:
        return argument


def settings(cls: type[R], arguments: dict[str, Any], **more: Any) -> R:
    """Build a settings record from templated fields.

    An empty text leaves the field at its default, and so does None in a field that cannot be None.
    """
    values = {name: value(argument) for name, argument in (arguments | more).items()}
    given = {name: item for name, item in values.items() if item != ""}
    return cls.from_dict({name: item for name, item in given.items() if item is not None or _may_be_none(cls, name)})


def record(cls: type[R], argument: object, task: str) -> R:
    """Read the record that an upstream task returned.

    :raises RecordRefused: if there is no record; the message names the task.
    """
    found = optional_record(cls, argument)
    if found is None:
        raise RecordRefused(
            f"The {cls.__name__} of task '{task}'",
            "is missing from XCom",
            f"Clear the task '{task}' with its downstream tasks.",
            code="missing_record",
        )
    return found


def optional_record(cls: type[R], argument: object) -> R | None:
    """Read a record, or return None if the task that returns it has not run."""
    data = value(argument)
    return None if data is None or data == "" else cls.from_dict(data)


def optional_integer(argument: Any, name: str, low: int, high: int) -> int | None:
    """Read a whole number, or None for an empty parameter.

    :raises ParameterRefused: for another value, or one outside the limits.
    """
    number = value(argument)
    return None if number in (None, "") else _in_range(number, name, low, high)


def single_file_max_bytes(argument: Any) -> int:
    """Read the parameter `single_file_max_bytes`. Empty: the default.

    :raises ParameterRefused: for another value, or one outside the limits.
    """
    size = optional_integer(argument, "single_file_max_bytes", 0, limits.PROTO_MAX_BYTES)
    return limits.SINGLE_FILE_MAX_BYTES if size is None else size


def integers(argument: Any, name: str, low: int, high: int) -> tuple[int, ...]:
    """Read a list of whole numbers and return it sorted, without duplicates.

    :raises ParameterRefused: for an empty list, another value, or a number outside the limits.
    """
    items = value(argument)
    if not isinstance(items, list | tuple) or not items:
        raise ParameterRefused(
            f"The parameter '{name}'",
            f"is {items!r:.200}",
            "Give a list of whole numbers, for example [1, 8, 32].",
            code="not_a_list",
        )
    return tuple(sorted({_in_range(item, name, low, high) for item in items}))


def _may_be_none(record: type[Record], name: str) -> bool:
    # An unknown field stays, and is refused by its name.
    return name not in record.model_fields or type(None) in get_args(record.model_fields[name].annotation)


def _in_range(number: Any, name: str, low: int, high: int) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
        raise ParameterRefused(
            f"The parameter '{name}'",
            f"is {number!r:.200}",
            f"Give whole numbers from {low} to {high}.",
            code="not_in_range",
        )
    return number
