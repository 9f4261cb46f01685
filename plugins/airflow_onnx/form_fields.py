"""The fields of a DAG's trigger form, and the templates by which operators read them."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param


def field(default: Any, kind: str, section: str, title: str, help_text: str, **schema: Any) -> Param:
    """Return a field of the form, of a JSON type; one without a default may stay empty."""
    types = kind if default is not None else ["null", kind]
    return Param(default, type=types, section=section, title=title, description_md=help_text, **schema)


def given(name: str) -> str:
    """Return the template of a text parameter; an empty field is empty text."""
    return "{{ params.%s or '' }}" % name  # noqa: UP031 - braces are Jinja's


def as_json(name: str) -> str:
    """Return the template of a parameter that is no text, which the operator reads back as JSON."""
    return "{{ params.%s | tojson }}" % name  # noqa: UP031 - braces are Jinja's


def pushed(task_id: str, key: str) -> str:
    """Return the template of what a task left in XCom under a key of its own, which the operator reads as JSON."""
    return "{{ ti.xcom_pull(task_ids='%s', key='%s') | tojson }}" % (task_id, key)  # noqa: UP031 - braces are Jinja's


def returned(task_id: str, otherwise: str = "") -> str:
    """Return the template of the record that a task returned; as text it draws no second arrow into the graph.

    :param otherwise: the task whose record it is when the first was skipped.
    """
    pulled = [f"ti.xcom_pull(task_ids='{task}')" for task in (task_id, otherwise) if task]
    return "{{ (%s) | tojson }}" % " or ".join(pulled)  # noqa: UP031 - braces are Jinja's
