"""Trigger forms: titles, sections and defaults of the fields."""

from __future__ import annotations

import re
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError
from airflow.serialization.definitions.param import SerializedParamsDict
from airflow.serialization.serialized_objects import DagSerialization

from airflow_onnx.dag import release_dag
from airflow_onnx.params import fields_of
from airflow_onnx.release_params import RELEASE
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


def is_nullable(param: Any) -> bool:
    # The rule by which Airflow's form marks a field as required.
    return isinstance(param.schema["type"], list) and "null" in param.schema["type"]


def test_a_field_that_may_be_empty_is_not_marked_as_required(params: dict[str, Any]) -> None:
    empty = {name for name, param in params.items() if param.value in (None, {}, [])}
    empty |= {name for name, param in params.items() if "Empty: " in param.schema["description_md"]}
    assert [name for name in empty if not is_nullable(params[name])] == []


def test_the_first_section_has_few_fields_and_the_others_are_for_experts(params: dict[str, Any]) -> None:
    sections = [param.schema["section"] for param in params.values()]
    # The garbage collection and the retirement have another number.
    opened = next((count for name, count in {"grace_h": 4, "made_before": 6}.items() if name in params), 5)
    assert sections[:opened] == [RELEASE] * opened
    assert {section.partition(":")[0] for section in sections[opened:]} == {"Experts"}
    # Airflow draws a section at its first field, so a section in two places would hide the order.
    changes = [section for section, before in zip(sections[1:], sections, strict=False) if section != before]
    assert len(changes) == len(set(changes))


def test_no_help_text_has_markdown_that_airflows_form_misplaces(params: dict[str, Any]) -> None:
    assert [name for name, param in params.items() if re.search(r"`|\*\*", param.schema["description_md"])] == []


def test_a_list_of_choices_is_a_multiple_choice(params: dict[str, Any]) -> None:
    for param in params.values():
        if choices := (param.schema.get("items") or {}).get("enum"):
            assert param.schema["examples"] == choices


@cache
def api_server_params() -> SerializedParamsDict:
    """Return the parameters as the API server has them: it reads the DAG from Airflow's database."""
    return DagSerialization.from_dict(DagSerialization.to_dict(release_dag("release_onnx"))).params


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("training_run_id", "notanid", "the 32 hex digits"),
        ("training_run_id", "0" * 31 + "G", "the 32 hex digits"),
        ("model_uri", "models:/radio", "models:/NAME/VERSION"),
        ("model_uri", "runs:/notanid/model", "runs:/RUN_ID/PATH"),
        ("model_name", "bad name!", "letters, digits, '.', '_' or '-'"),
        ("alias", "Candidate", "a lower-case letter"),
        ("inputs_uri", "s3://b/k.csv", "s3://BUCKET/KEY.npz"),
        ("factory", "nets.py", "package.module:name"),
    ],
)
def test_airflow_refuses_a_wrong_text_in_words(name: str, value: str, words: str) -> None:
    with pytest.raises(ParamValidationError, match=f"Invalid input for param {name}") as caught:
        api_server_params().deep_merge({name: value}).validate()
    assert words in str(caught.value).splitlines()[0]


def test_each_parity_limit_is_a_field_with_its_default_and_bounds() -> None:
    fields = fields_of(OutputLimits, "Parity")
    assert list(fields) == list(OutputLimits.model_fields)
    schema = fields["agreement_min"].schema
    assert (schema["type"], schema["minimum"], schema["maximum"]) == (["null", "number"], 0, 1)
    assert fields["max_abs"].schema["type"] == ["null", "number"]
