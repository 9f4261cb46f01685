"""Validation of names that become object keys and registry URIs."""

from __future__ import annotations

import pytest

from airflow_onnx import validation
from onnx_release.errors import ParameterRefused
from onnx_release.training_runs.names import validate_model_name, validate_run_id
from tests.refusals import refused

HOSTILE = [
    "",
    "../other",
    "a/b",
    "a b",
    "ünï",
    "a\nb",
    "-rf",
    ".hidden",
    "a" * 129,
    "models:/x",
    "a%2e%2e",
    "x'or'1'='1",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_model_names_are_refused_by_name_and_rule(text: str) -> None:
    with refused("wrong_name", repr(text)[:200], "Use 1 to 128 letters"):
        validate_model_name(text)


@pytest.mark.parametrize("text", ["heimdall-localization-onnx", "a", "A.b_c-9", "a..b"])
def test_ordinary_model_names_pass_unchanged(text: str) -> None:
    assert validate_model_name(text) == text


@pytest.mark.parametrize("text", ["../x", "a/b", "", "notanid", "0" * 33, "A" * 32, "0" * 32 + "\n"])
def test_run_ids_cannot_leave_their_prefix(text: str) -> None:
    with refused("wrong_name"):
        validate_run_id(text)


@pytest.mark.parametrize("text", ["latest", "v1", "Candidate", "1st", ""])
def test_aliases_that_mlflow_reserves_or_refuses(text: str) -> None:
    with pytest.raises(ParameterRefused) as caught:
        validation.validate_alias(text)
    assert caught.value.code in ("wrong_name", "reserved_alias")


def test_the_folder_of_an_artifact_is_prefix_model_run_and_digest() -> None:
    of_run = validation.run_folder_uri("models", "", "m", "1" * 32)
    assert validation.artifact_uri(of_run, "ab" * 32) == f"s3://models/m/{'1' * 32}/abababababababab"
    assert validation.run_folder_uri("models", "teams/radio", "m", "1" * 32) == f"s3://models/teams/radio/m/{'1' * 32}"
