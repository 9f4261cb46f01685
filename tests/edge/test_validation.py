"""Names from outside are data: what may become an object key or a registry URI, and what is refused."""

from __future__ import annotations

import pytest

from airflow_onnx import validation
from onnx_release.errors import Refused

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
    with pytest.raises(Refused) as refused:
        validation.model_name(text)
    assert repr(text)[:200] in str(refused.value)
    assert "Use 1 to 128 letters" in refused.value.action


@pytest.mark.parametrize("text", ["heimdall-localization-onnx", "a", "A.b_c-9", "a..b"])
def test_ordinary_model_names_pass_unchanged(text: str) -> None:
    assert validation.model_name(text) == text


@pytest.mark.parametrize("text", ["../x", "a/b", "", "x" * 65, "a b"])
def test_run_ids_cannot_leave_their_prefix(text: str) -> None:
    with pytest.raises(Refused):
        validation.run_id(text)


@pytest.mark.parametrize("text", ["latest", "v1", "Candidate", "1st", ""])
def test_aliases_that_mlflow_reserves_or_refuses(text: str) -> None:
    with pytest.raises(Refused):
        validation.alias(text)


def test_object_prefix_is_model_run_and_digest() -> None:
    assert validation.object_prefix("m", "r1", "ab" * 32) == "m/r1/abababababababab/"
