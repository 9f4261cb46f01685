"""Seeded values: mixtures of the example's rows, within the range of each column."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnx_release.records import TensorSpec
from onnx_release.samples.dimensions import Dimensions
from onnx_release.samples.draw import seeded_arrays

GENERATOR = np.random.default_rng(5)


def drawn(batch: int = 64, **example: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Draw a sample for inputs with a batch, or with no dimension at all."""
    inputs = [
        TensorSpec(name=name, dtype=array.dtype.name, shape=("batch", *array.shape[1:]) if array.ndim else ())
        for name, array in example.items()
    ]
    dimensions = Dimensions.of(inputs, example)
    return seeded_arrays(dimensions, dimensions.sizes(batch), 1, example)


@pytest.mark.parametrize("rows", [1, 4])
def test_floats_lie_between_the_smallest_and_the_largest_of_their_column(rows: int) -> None:
    example = GENERATOR.uniform([-90, -180, 0.1], [90, 180, 0.2], (rows, 3)).astype(np.float32)
    sample = drawn(x=example)["x"]
    low, high = (example.min(0), example.max(0)) if rows > 1 else (example.min(), example.max())
    assert (low <= sample).all()
    assert (sample <= high).all()
    assert len(np.unique(sample[:, 1])) > 10


def test_categories_flags_and_one_hot_rows_keep_their_values() -> None:
    example = np.array([[0.5, 4, 1, 0, 0], [1.5, 0, 0, 1, 0], [2.5, 2, 0, 0, 1]], np.float32)
    sample = drawn(x=example)["x"]
    assert set(np.unique(sample[:, 1])) == {0, 2, 4}
    assert (sample[:, 2:].sum(1) == 1).all()
    assert len(np.unique(sample[:, 0])) > 10


def test_pixels_stay_whole_numbers_and_vary() -> None:
    example = GENERATOR.integers(0, 256, (2, 3, 6, 6)).astype(np.float32)
    sample = drawn(x=example)["x"]
    assert (sample == np.round(sample)).all()
    assert (sample.min(), sample.max()) >= (0, 0)
    assert len(np.unique(sample.reshape(64, -1), axis=0)) > 50


def test_shares_add_up_to_one() -> None:
    sample = drawn(x=GENERATOR.dirichlet(np.ones(5), 3).astype(np.float32))["x"]
    np.testing.assert_allclose(sample.sum(1), 1, atol=1e-6)


def test_missing_values_stay_in_their_columns() -> None:
    example = GENERATOR.standard_normal((4, 3)).astype(np.float32)
    example[1, 2] = np.nan
    example[2, 0] = -np.inf
    missing = ~np.isfinite(drawn(x=example)["x"])
    assert missing.any(0).tolist() == [True, False, True]
    assert missing.mean() < 0.3


def test_the_rows_of_all_inputs_belong_together() -> None:
    """A mask has ones where its ids are, and the padding stays at the end."""
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    sample = drawn(mask=mask, kept=mask.astype(bool), weight=mask.astype(np.float32))
    assert {tuple(row) for row in sample["mask"]} == {tuple(row) for row in mask}
    assert (sample["mask"] == sample["kept"]).all()
    assert (sample["mask"] == sample["weight"]).all()


def test_integers_keep_the_range_of_their_column() -> None:
    example = np.array([[0, 1_700_000_000_000], [4, 1_800_000_000_000]])
    sample = drawn(x=example)["x"]
    assert (sample[:, 0].min(), sample[:, 0].max()) == (0, 4)
    assert 1_700_000_000_000 <= sample[:, 1].min() < sample[:, 1].max() <= 1_800_000_000_000


@pytest.mark.parametrize("value", [True, False])
def test_a_mask_that_is_equal_everywhere_varies_and_keeps_one_element(value: bool) -> None:
    sample = drawn(x=np.full((2, 5), value))["x"]
    assert (sample == value).any(1).all()
    assert (sample != value).any()


def test_a_number_without_a_dimension_keeps_its_sign_and_a_whole_one_its_value() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    sample = drawn(x=values, scale=np.asarray(0.3, np.float32), step=np.asarray(7))
    assert sample["scale"].shape == ()
    assert 0.2 < sample["scale"] <= 0.3
    assert sample["step"] == 7


def test_positions_along_a_varying_dimension_are_alike() -> None:
    inputs = [
        TensorSpec(name="x", dtype="float32", shape=("nodes", 2)),
        TensorSpec(name="e", dtype="int64", shape=(2, "e")),
    ]
    example = {"x": np.array([[0.5, 10.5], [1.5, 11.5], [2.5, 12.5]], np.float32), "e": np.array([[0, 1], [1, 2]])}
    dimensions = Dimensions.of(inputs, example)
    sample = seeded_arrays(dimensions, dimensions.sizes(3), 1, example)
    assert (sample["x"].shape, sample["e"].shape) == ((9, 2), (2, 6))
    assert sample["x"][:, 0].max() <= 2.5 < 10.5 <= sample["x"][:, 1].min()
    assert sample["e"][0].max() <= 1 <= sample["e"][1].min()


def test_a_mask_that_is_cut_keeps_a_valid_part() -> None:
    # The valid part of each row is at its end, and a shorter sample has only the beginning.
    mask = np.zeros((4, 12), np.int64)
    mask[:, 8:] = 1
    inputs = [TensorSpec(name="mask", dtype="int64", shape=("batch", "length"))]
    dimensions = Dimensions.of(inputs, {"mask": mask})
    sample = seeded_arrays(dimensions, dimensions.sizes(8, length=6), 1, {"mask": mask})["mask"]
    assert sample.shape == (8, 6)
    assert sample.any(axis=1).all()


def test_a_column_of_flags_keeps_its_zeros() -> None:
    sample = drawn(flag=np.array([[0], [1], [0]], np.int64))["flag"]
    assert set(np.unique(sample)) == {0, 1}
