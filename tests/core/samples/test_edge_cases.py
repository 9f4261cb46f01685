"""Samples beyond the training run's example: a user's file, extreme values, other sizes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from onnx_release.records import TensorSpec
from onnx_release.samples.edge_cases import probing_samples, read_npz
from onnx_release.trained.input_spec import InputSpec
from tests.refusals import refused

IDS = TensorSpec(name="ids", dtype="int64", shape=("batch", "length"))
MASK = TensorSpec(name="mask", dtype="bool", shape=("batch", "length"))
X = TensorSpec(name="x", dtype="float32", shape=("batch", 3))


def test_extremes_alternate_within_the_values_of_the_example() -> None:
    example = {"ids": np.array([[4, 9, 5]]), "mask": np.array([[True, True, True]])}
    samples = {sample.name: sample for sample in probing_samples([IDS, MASK], example, {})}
    assert set(np.unique(samples["extremes"].inputs["ids"])) == {4, 9}
    assert samples["extremes"].inputs["mask"].any()
    assert samples["zeros"].inputs["mask"].any(), "a mask of zeros has no defined result"
    assert set(np.unique(samples["zeros"].inputs["ids"])) == {4}, "an embedding may have no row 0"
    assert all(sample.probing and sample.batch_size == 3 for sample in samples.values())


def test_a_varying_dimension_takes_other_sizes_in_every_input_that_has_it() -> None:
    example = {"ids": np.zeros((1, 8), np.int64), "mask": np.ones((1, 8), bool)}
    varied = [sample for sample in probing_samples([IDS, MASK], example, {}) if sample.varied]
    assert [sample.inputs["ids"].shape for sample in varied] == [(3, 4), (3, 9), (3, 16)]
    assert all(sample.inputs["mask"].shape == sample.inputs["ids"].shape for sample in varied)
    assert {sample.varied for sample in varied} == {("length",)}


def test_dimensions_of_one_size_are_varied_alone_and_together() -> None:
    """A model may need two lengths to be equal although its signature does not name them alike."""
    image = TensorSpec(name="x", dtype="float32", shape=("batch", "height", "width"))
    samples = probing_samples([image], {"x": np.zeros((1, 8, 8), np.float32)}, {})
    shapes = [sample.inputs["x"].shape[1:] for sample in samples if sample.varied]
    assert shapes == [(4, 8), (9, 8), (16, 8), (8, 4), (8, 9), (8, 16), (9, 9), (16, 16)]


def test_sizes_and_ranges_of_the_input_spec_are_used() -> None:
    spec = InputSpec(name="ids", dtype="int64", shape=("batch", "length"), vocabulary_size=7, sizes={"length": (5, 6)})
    samples = list(probing_samples([IDS], None, {"ids": spec}))
    assert [sample.inputs["ids"].shape[1] for sample in samples] == [5, 5, 6], "other lengths are not tried"
    values = np.concatenate([sample.inputs["ids"].ravel() for sample in samples])
    assert (values.min(), values.max()) == (0, 6)


def test_a_user_file_is_read_as_one_sample(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((5, 3), np.float32))
    sample = read_npz(tmp_path / "in.npz", [X], "s3://b/in.npz")
    assert (sample.name, sample.batch_size, sample.inputs["x"].shape) == ("user", 5, (5, 3))


@pytest.mark.parametrize(
    ("arrays", "code", "part"),
    [
        ({"y": np.ones((2, 3), np.float32)}, "example_mismatch", "lacks the input x; has y"),
        ({"x": np.ones((2, 4), np.float32)}, "example_mismatch", "shape [2, 4], not ['batch', 3]"),
        ({"x": np.ones((2, 3))}, "example_mismatch", "float64, not float32"),
        ({"x": np.ones((5000, 3), np.float32)}, "batch_too_large", "batch size of 5000; the limit is 4096"),
        ({"x": np.array([{"a": 1}], dtype=object)}, "unreadable_npz", ""),
    ],
)
def test_a_user_file_that_does_not_fit_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], code: str, part: str
) -> None:
    np.savez(tmp_path / "in.npz", **arrays)  # type: ignore[arg-type]
    with refused(code, "'s3://b/in.npz'", part):
        read_npz(tmp_path / "in.npz", [X], "s3://b/in.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", pickle.dumps([1])])
def test_another_kind_of_file_is_refused_and_never_unpickled(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.npz").write_bytes(content)
    with refused("unreadable_npz"):
        read_npz(tmp_path / "in.npz", [X], "in.npz")
