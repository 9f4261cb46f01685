"""Trigger forms: titles, sections and defaults of the fields."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from airflow_onnx.params import fields_of
from onnx_release.limits import OutputLimits

DAGS = sorted((Path(__file__).parents[2] / "dags").glob("*.py"))


@pytest.fixture(params=DAGS, ids=lambda path: path.stem)
def params(request: pytest.FixtureRequest) -> dict[str, Any]:
    found = runpy.run_path(str(request.param))["dag"].params
    return {name: found.get_param(name) for name in found}


def test_every_field_has_a_title_a_help_text_and_a_section(params: dict[str, Any]) -> None:
    required = ("title", "description_md", "section")
    assert [name for name, param in params.items() if not all(param.schema.get(key) for key in required)] == []


def test_every_default_is_valid(params: dict[str, Any]) -> None:
    for param in params.values():
        param.resolve()


def test_no_default_is_empty_text(params: dict[str, Any]) -> None:
    # Airflow's form treats empty text as missing and disables the Trigger button. An empty field is null.
    assert [name for name, param in params.items() if param.value == ""] == []


def test_each_parity_limit_is_a_field_with_its_default_and_bounds() -> None:
    fields = fields_of(OutputLimits, "Parity")
    assert list(fields) == list(OutputLimits.model_fields)
    schema = fields["agreement_min"].schema
    assert (schema["type"], schema["minimum"], schema["maximum"]) == ("number", 0, 1)
    assert fields["max_abs"].schema["type"] == ["null", "number"]
