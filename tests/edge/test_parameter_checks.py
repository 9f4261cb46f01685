"""Checks of all parameters of a release together."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_onnx import parameter_checks
from airflow_onnx.errors import together
from airflow_onnx.release_params import release_params
from tests.refusals import refused

DEFAULTS = {name: param.value for name, param in release_params().items()} | {"bucket": "models"}


def test_the_defaults_and_every_empty_field_pass() -> None:
    assert parameter_checks.problems(DEFAULTS) == []
    empty = {name: None for name, param in release_params().items() if "null" in param.schema["type"]}
    assert parameter_checks.problems(DEFAULTS | empty | {"bucket": "models"}) == []


def test_a_bucket_has_no_default_and_the_refusal_names_the_places_to_set_it() -> None:
    assert release_params()["bucket"].value is None
    (found,) = parameter_checks.problems(DEFAULTS | {"bucket": None})
    assert found.code == "missing_value"
    assert all(place in found.action for place in ("parameter 'bucket'", "release_dag", "[onnx_release] bucket"))


@pytest.mark.parametrize(
    ("changes", "code", "part"),
    [
        ({"alias": "latest"}, "reserved_alias", "'latest'"),
        ({"alias": "a" * 62, "tune": True, "tune_precisions": ["exact", "int8"]}, "wrong_name", "-int8"),
        ({"stage": "Production", "tune": True, "tune_precisions": ["int8"]}, "stage_of_reduced_precision", "int8"),
        ({"precision_limits": {"int4": {"mae_max": 1}}}, "unknown_precision", "'int4'"),
        ({"precision_limits": {"int8": {"mae": 1}}}, "wrong_parameter", "'mae'"),
        ({"precision_limits": {"int8": {"mae_max": "x"}}}, "wrong_parameter", "'x'"),
        ({"per_output": {"y": {"mae_max": "small"}}}, "wrong_parameter", "'small'"),
        ({"per_output": {"y": 1}}, "wrong_parameter", "per_output"),
        ({"per_dtype": {"float16": {"mean": 1}}}, "wrong_parameter", "'mean'"),
        ({"per_output": {"y": {"mae_max": -1}}}, "wrong_parameter", "Use a number above 0"),
        ({"per_dtype": {"float16": {"cosine_min": 2}}}, "wrong_parameter", "Use a number from -1 up to 1"),
        ({"precision_limits": {"int8": {"max_abs": float("inf")}}}, "wrong_parameter", "max_abs = inf"),
        ({"weights_key": "x" * 10_000_000}, "wrong_parameter", "has 10000000 characters"),
        ({"uncertainty_of": {"y": 1}}, "wrong_parameter", "uncertainty_of"),
        ({"input_spec": [{"name": "x", "dtype": "double", "shape": [2]}]}, "input_spec", "'double'"),
        ({"input_spec": [{"name": "x", "kind": "image"}]}, "wrong_field", "kind"),
        ({"target_runtimes": ["1.20.1", "1.20.1 --pre"]}, "target_runtimes", "--pre"),
        ({"serving_layouts": ["triton", "seldon"]}, "serving_layouts", "'seldon'"),
        ({"target_runtimes": "latest"}, "target_runtimes", "latest"),
        ({"model_name": "a/b"}, "wrong_name", "'a/b'"),
        ({"mae_mx": 1e-3}, "unknown_parameter", "Use 'mae_max'"),
        ({"\x1b[31m" * 50: 1}, "unknown_parameter", "docs/parameters.md"),
        ({"bucket": "A"}, "wrong_name", "'A'"),
        ({"prefix": "a//b"}, "wrong_name", "'a//b'"),
        ({"prefix": "a/../b"}, "wrong_name", "'a/../b'"),
    ],
)
def test_a_wrong_parameter_is_named(changes: dict[str, Any], code: str, part: str) -> None:
    (found,) = parameter_checks.problems(DEFAULTS | changes)
    assert (found.code, part in str(found)) == (code, True), found


def test_one_refusal_names_all_of_them() -> None:
    wrong = {"alias": "latest", "model_name": "bad name!", "per_output": {"y": {"mae_max": "\x1b[31m" + "x" * 10_000}}}
    found = parameter_checks.problems(DEFAULTS | wrong)
    with refused("wrong_name", "3 problems", "(1)", "'bad name!'", "(2)", "per_output", "(3)", "'latest'"):
        raise together("The check of the parameters", found)
    assert len(str(together("The check of the parameters", found))) < 1500
