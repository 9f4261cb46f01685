"""Comparison of tensor specifications."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from onnx_release.records import TensorSpec

SPEC = TensorSpec(name="x", dtype="float32", shape=("batch", "length", 3))
NOT_SHAPE = "not ['batch', 'length', 3]"


def _like(**changes: object) -> TensorSpec:
    return SPEC.replace(**changes)


@pytest.mark.parametrize(
    ("other", "sizes"),
    [
        (_like(), None),
        (_like(name="y", shape=("n", "m", 3)), None),
        (_like(shape=(2, 7, 3)), {}),
        (_like(shape=(2, 7, 3)), {"batch": 2}),
    ],
)
def test_matching_tensors_have_no_mismatch(other: TensorSpec, sizes: Mapping[str, int] | None) -> None:
    assert SPEC.mismatches(other, sizes) == []


@pytest.mark.parametrize(
    ("other", "sizes", "mismatches"),
    [
        (_like(dtype="float64"), None, ["has dtype float64, not float32"]),
        (_like(shape=("batch", 3)), None, [f"has shape ['batch', 3], {NOT_SHAPE}"]),
        (_like(shape=(1, "length", 3)), None, [f"has shape [1, 'length', 3], {NOT_SHAPE}"]),
        (
            _like(shape=("batch", "length", "n")),
            None,
            [f"has shape ['batch', 'length', 'n'], {NOT_SHAPE}"],
        ),
        (_like(shape=(2, 7, 4)), {}, [f"has shape [2, 7, 4], {NOT_SHAPE}"]),
        (_like(shape=(3, 7, 3)), {"batch": 2}, [f"has shape [3, 7, 3], {NOT_SHAPE}"]),
        (
            _like(dtype="int8", shape=()),
            {},
            ["has dtype int8, not float32", f"has shape [], {NOT_SHAPE}"],
        ),
    ],
)
def test_dtype_rank_and_sizes_are_compared(
    other: TensorSpec, sizes: Mapping[str, int] | None, mismatches: list[str]
) -> None:
    assert SPEC.mismatches(other, sizes) == mismatches
