"""The fields of a DAG's trigger form, and the templates by which operators read them."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param

from onnx_release.records.base import Record


def field(default: Any, kind: str, section: str, title: str, help_text: str, **schema: Any) -> Param:
    """Return a field of the form, of a JSON type; one without a default may stay empty."""
    types = kind if default is not None else ["null", kind]
    return Param(default, type=types, section=section, title=title, description_md=help_text, **schema)


def fields_of(record: type[Record], section: str) -> dict[str, Param]:
    """Return a number field of the form for each field of a record, with its default, title, text and bounds.

    :param record: a record whose fields are numbers or None, with the bounds in `json_schema_extra`.
    """
    fields = {}
    for name, info in record.model_fields.items():
        bounds = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        fields[name] = field(info.default, "number", section, info.title or name, info.description or "", **bounds)
    return fields


def given(name: str) -> str:
    """Return the template of a text parameter; an empty field is empty text."""
    return "{{ params.%s or '' }}" % name  # noqa: UP031 - braces are Jinja's


def as_json(name: str) -> str:
    """Return the template of a parameter that is no text, which the operator reads back as JSON."""
    return "{{ params.%s | tojson }}" % name  # noqa: UP031 - braces are Jinja's


def returned(task_id: str, otherwise: str = "") -> str:
    """Return the template of the record that a task returned; as text it draws no second arrow into the graph.

    :param otherwise: the task whose record it is when the first was skipped.
    """
    pulled = [f"ti.xcom_pull(task_ids='{task}')" for task in (task_id, otherwise) if task]
    return "{{ (%s) | tojson }}" % " or ".join(pulled)  # noqa: UP031 - braces are Jinja's
