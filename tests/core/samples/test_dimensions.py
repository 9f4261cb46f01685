"""Varying dimensions of several inputs: names, and sizes at a batch size."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_release.records import TensorSpec
from onnx_release.samples.dimensions import Dimensions
from onnx_release.trained.dimension_names import computed_size, identifiers, is_computed
from onnx_release.trained.input_spec import parse_input_spec

NODES = TensorSpec(name="x", dtype="float32", shape=("nodes", 16))
EDGES = TensorSpec(name="e", dtype="int64", shape=(2, "edges"))


def test_a_batch_size_multiplies_inputs_that_share_no_batch() -> None:
    example = {"x": np.zeros((5, 16), np.float32), "e": np.zeros((2, 7), np.int64)}
    dimensions = Dimensions.of([NODES, EDGES], example)
    assert (dimensions.batch, dimensions.others) == (None, ["nodes", "edges"])
    assert dimensions.sizes(3) == {"nodes": 15, "edges": 21}
    assert dimensions.batch_size(example) == 1
    assert dimensions.resized(example, {"nodes": 8})["x"].shape == (8, 16)


def test_a_computed_dimension_follows_the_others() -> None:
    mask = TensorSpec(name="mask", dtype="int64", shape=("batch", "past + length"))
    ids = TensorSpec(name="ids", dtype="int64", shape=("batch", "length"))
    past = TensorSpec(name="past", dtype="float32", shape=("batch", "past", 4))
    dimensions = Dimensions.of([ids, past, mask])
    assert dimensions.others == ["length", "past"]
    assert dimensions.sizes(2, past=3)["past + length"] == 19


def test_names_become_identifiers_and_stay_different() -> None:
    names = identifiers(["x-y", "x_y", "x y", "3d", "длина", "in", "Länge", "-1", "x" * 99])
    assert names["x_y"] == "x_y"
    assert len(set(names.values())) == len(names)
    assert all(name.isidentifier() and name.isascii() and len(name) <= 70 for name in names.values())


@pytest.mark.parametrize(
    ("expression", "size"),
    [("length + 1", 6), ("2*length", 10), ("(length + 1)//2", 3), ("other + 1", None), ("length ** 9", None),
     ("__import__('os')", None), ("length // 0", None), ("a b", None)],
)  # fmt: skip
def test_expressions_of_sizes_are_computed_and_nothing_else(expression: str, size: int | None) -> None:
    assert computed_size(expression, {"length": 5}) == size
    assert is_computed(expression, ["length"]) == (size is not None)


def test_an_input_spec_may_name_its_dimensions_freely() -> None:
    shape = ["batch size", "mel-length", "mel-length + 1"]
    (spec,) = parse_input_spec([{"name": "x", "dtype": "float32", "shape": shape, "sizes": {"mel-length": [4]}}])
    assert spec.shape == ("batch_size", "mel_length", "mel_length___1")
    assert spec.sizes == {"mel_length": (4,)}
    (spec,) = parse_input_spec([{"name": "x", "dtype": "float32", "shape": ["batch", "length", "length + 1"]}])
    assert spec.shape == ("batch", "length", "length + 1")
