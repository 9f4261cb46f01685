"""The release parameter `input_spec`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onnx_release.trained.input_spec import InputSpec, parse_input_spec
from tests.refusals import refused

GOOD = {"name": "ids", "dtype": "int64", "shape": ["batch", "length"], "vocabulary_size": 100}


@pytest.mark.parametrize("value", [None, "", "  ", []])
def test_an_empty_value_is_no_description(value: Any) -> None:
    assert parse_input_spec(value) == ()


@pytest.mark.parametrize("value", [[GOOD], json.dumps([GOOD])])
def test_a_list_and_its_json_are_equal(value: Any) -> None:
    (spec,) = parse_input_spec(value)
    assert spec.tensor().shape == ("batch", "length")
    assert spec.bounds() == (0, 99)


@pytest.mark.parametrize(
    ("low", "high", "bounds"),
    [(None, None, None), (-1.0, 1.0, (-1.0, 1.0)), (2.0, None, (2.0, 3.0)), (None, -3.0, (-3.0, -3.0))],
)
def test_a_missing_bound_is_completed(low: float | None, high: float | None, bounds: Any) -> None:
    assert InputSpec(name="x", dtype="float32", shape=("batch",), low=low, high=high).bounds() == bounds


@pytest.mark.parametrize(
    ("changes", "code", "part"),
    [
        ({"dtype": "float23"}, "input_spec", "'ids' has dtype 'float23', none of bool, float16"),
        ({"dtype": "object"}, "input_spec", "dtype 'object'"),
        ({"shape": ["batch", 0]}, "input_spec", "a dimension of 0"),
        ({"shape": ["batch", " "]}, "input_spec", "a dimension named ' '"),
        ({"shape": "batch"}, "wrong_field", "shape"),
        ({"vocabulary_size": 0}, "input_spec", "vocabulary_size 0"),
        ({"dtype": "float32"}, "input_spec", "vocabulary_size 100; it must be at least 1, for an integer dtype"),
        ({"low": 1.0}, "input_spec", "remove one of the two"),
        ({"vocabulary_size": None, "low": 3.0, "high": 2.0}, "input_spec", "values from 3.0 to 2.0"),
        ({"vocabulary_size": None, "high": float("nan")}, "input_spec", "values from"),
        ({"sizes": {"width": [4]}}, "input_spec", "sizes [4] for 'width'"),
        ({"sizes": {"length": [0]}}, "input_spec", "sizes [0] for 'length'"),
        ({"vocabulary": 3}, "wrong_field", "vocabulary"),
        ({"name": ""}, "input_spec", "has no name"),
    ],
)
def test_each_mistake_is_named(changes: dict[str, Any], code: str, part: str) -> None:
    with refused(code, part):
        parse_input_spec([GOOD | changes])


@pytest.mark.parametrize(
    ("value", "part"), [("{", "is not JSON"), ({"ids": 1}, "not a list of inputs"), ([GOOD, GOOD], "share a name")]
)
def test_a_malformed_list_is_refused_with_the_right_form(value: Any, part: str) -> None:
    with refused("input_spec", part, "Write a list such as"):
        parse_input_spec(value)
