"""What a person may say of a model's inputs, and what is refused of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onnx_release.errors import Refused
from onnx_release.trained.input_spec import InputSpec, parse_input_spec

GOOD = {"name": "ids", "dtype": "int64", "shape": ["batch", "length"], "vocabulary_size": 100}


@pytest.mark.parametrize("given", [None, "", "  ", []])
def test_nothing_said_is_no_specification(given: Any) -> None:
    assert parse_input_spec(given) == ()


@pytest.mark.parametrize("given", [[GOOD], json.dumps([GOOD])])
def test_a_list_and_its_json_are_the_same(given: Any) -> None:
    (spec,) = parse_input_spec(given)
    assert spec.tensor().shape == ("batch", "length")
    assert spec.bounds() == (0, 99)


@pytest.mark.parametrize(
    ("low", "high", "bounds"),
    [(None, None, None), (-1.0, 1.0, (-1.0, 1.0)), (2.0, None, (2.0, 3.0)), (None, -3.0, (-3.0, -3.0))],
)
def test_one_bound_alone_is_completed(low: float | None, high: float | None, bounds: Any) -> None:
    assert InputSpec(name="x", dtype="float32", shape=("batch",), low=low, high=high).bounds() == bounds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float23"}, "'ids' has dtype 'float23', none of bool, float16"),
        ({"dtype": "object"}, "dtype 'object'"),
        ({"shape": ["batch", 0]}, "a dimension of 0"),
        ({"shape": ["batch", "../x"]}, "a dimension called '../x'"),
        ({"shape": "batch"}, "not a list"),
        ({"vocabulary_size": 0}, "vocabulary_size 0"),
        ({"dtype": "float32"}, "vocabulary_size 100: at least 1, and for an integer dtype"),
        ({"low": 1.0}, "give one of the two"),
        ({"vocabulary_size": None, "low": 3.0, "high": 2.0}, "values from 3.0 to 2.0"),
        ({"vocabulary_size": None, "high": float("nan")}, "values from"),
        ({"sizes": {"width": [4]}}, "sizes [4] for 'width'"),
        ({"sizes": {"length": [0]}}, "sizes [0] for 'length'"),
        ({"vocabulary": 3}, "vocabulary"),
        ({"name": ""}, "has no name"),
    ],
)
def test_each_mistake_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused) as refusal:
        parse_input_spec([GOOD | changes])
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "words"), [("{", "is no JSON"), ({"ids": 1}, "not a list of inputs"), ([GOOD, GOOD], "share a name")]
)
def test_what_is_no_list_of_inputs_is_refused_with_the_form(given: Any, words: str) -> None:
    with pytest.raises(Refused, match=r"Give a list such as") as refusal:
        parse_input_spec(given)
    assert words in str(refusal.value)
