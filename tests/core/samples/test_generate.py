"""Samples from the training run's example and from seeds."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_release.limits import VARYING_DIMENSION_SIZE
from onnx_release.records import TensorSpec
from onnx_release.samples.dimensions import batch_axes
from onnx_release.samples.generate import make_samples
from tests.refusals import refused

X = TensorSpec(name="x", dtype="float32", shape=("batch", 3))
IDS = TensorSpec(name="ids", dtype="int64", shape=("batch", "length"))
MASK = TensorSpec(name="mask", dtype="bool", shape=("batch", "length"))
SCALE = TensorSpec(name="scale", dtype="float32", shape=(1,))


def test_the_example_is_used_unchanged_repeated_and_cut() -> None:
    example = np.arange(6, dtype=np.float32).reshape(2, 3)
    samples = [s for s in make_samples([X], {"x": example}, (1, 2, 5)) if s.name == "example"]
    assert [s.batch_size for s in samples] == [2, 1, 5]
    np.testing.assert_array_equal(samples[0].inputs["x"], example)
    np.testing.assert_array_equal(samples[1].inputs["x"], example[:1])
    np.testing.assert_array_equal(samples[2].inputs["x"], example[[0, 1, 0, 1, 0]])


def test_every_sample_has_its_batch_size_and_a_unique_name() -> None:
    example = {"ids": np.array([[4, 9, 5]]), "mask": np.array([[True, False, True]])}
    samples = make_samples([IDS, MASK], example, (1, 4))
    assert len({(s.name, s.batch_size) for s in samples}) == len(samples) == 5
    for sample in samples:
        assert {array.shape for array in sample.inputs.values()} == {(sample.batch_size, 3)}


def test_seeded_values_follow_the_example() -> None:
    example = {"x": np.random.default_rng(0).normal(50.0, 4.0, (8, 3)).astype(np.float32)}
    seeded = [s for s in make_samples([X], example, (512,)) if s.name != "example"]
    for sample in seeded:
        assert sample.inputs["x"].dtype == np.float32
        assert sample.inputs["x"].mean() == pytest.approx(example["x"].mean(), abs=1.0)
        assert sample.inputs["x"].std() == pytest.approx(example["x"].std(), rel=0.2)
    assert not np.array_equal(seeded[0].inputs["x"], seeded[1].inputs["x"])


def test_seeded_integers_stay_within_the_example_and_booleans_vary() -> None:
    example = {"ids": np.array([[4, 9, 5]]), "mask": np.array([[True, True, True]])}
    sample = make_samples([IDS, MASK], example, (64,))[-1]
    assert (sample.inputs["ids"].min(), sample.inputs["ids"].max()) == (4, 9)
    assert set(np.unique(sample.inputs["mask"])) == {False, True}


def test_without_an_example_all_samples_are_seeded() -> None:
    samples = make_samples([X, IDS], None, (2,))
    assert [s.name for s in samples] == ["seed 11", "seed 23"]
    assert samples[0].inputs["ids"].shape == (2, VARYING_DIMENSION_SIZE)
    assert set(np.unique(samples[0].inputs["ids"])) <= {0, 1}


def test_same_arguments_give_same_values() -> None:
    first, second = (make_samples([X, IDS], None, (3, 7)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        for name in one.inputs:
            np.testing.assert_array_equal(one.inputs[name], other.inputs[name])


def test_a_constant_example_still_gives_samples_that_vary() -> None:
    sample = make_samples([X], {"x": np.zeros((2, 3), np.float32)}, (4,))[-1]
    assert sample.inputs["x"].std() > 0.1


def test_a_half_precision_sample_does_not_overflow() -> None:
    spec = TensorSpec(name="x", dtype="float16", shape=("batch", 64))
    example = {"x": np.tile(np.array([-65504, 65504], np.float16), (2, 32))}
    assert all(np.isfinite(s.inputs["x"]).all() for s in make_samples([spec], example, (64,)))


def test_an_input_without_a_batch_keeps_its_shape() -> None:
    example = {"x": np.ones((2, 3), np.float32), "scale": np.array([7.0], np.float32)}
    for sample in make_samples([X, SCALE], example, (1, 4)):
        assert sample.inputs["scale"].shape == (1,)


def test_the_batch_is_the_dimension_of_that_name_else_the_first_common_one() -> None:
    def axes(*shapes: tuple[int | str, ...]) -> list[int | None]:
        specs = [TensorSpec(name=str(i), dtype="float32", shape=shape) for i, shape in enumerate(shapes)]
        return list(batch_axes(specs).values())

    assert axes(("time", "batch", 3), ("time",)) == [1, None]
    assert axes((3, "n")) == [1]
    assert axes(("n", "length"), ("length",), (1,)) == [0, None, None]
    assert axes(("nodes", 16), (2, "edges")) == [None, None]


@pytest.mark.parametrize(
    ("specs", "example", "sizes", "code", "part"),
    [
        ([X], {"x": np.ones((2, 4), np.float32)}, (1,), "example_mismatch", "[2, 4], not ['batch', 3]"),
        ([X], {"x": np.ones(3, np.float32)}, (1,), "example_mismatch", "[3], not ['batch', 3]"),
        ([X], {"x": np.ones((2, 3))}, (1,), "example_mismatch", "float64, not float32"),
        ([X], {"y": np.ones((2, 3), np.float32)}, (1,), "example_mismatch", "lacks the input x; has y"),
        ([X], {"x": np.full((2, 3), np.nan, np.float32)}, (1,), "example_mismatch", "'x' that has no finite value"),
        ([X], {"x": np.ones((0, 3), np.float32)}, (1,), "example_mismatch", "'x' that is empty"),
        (
            [X, IDS],
            {"x": np.ones((2, 3), np.float32), "ids": np.ones((3, 2), np.int64)},
            (1,),
            "example_mismatch",
            "different sizes of the dimension 'batch': 2 in 'x', 3 in 'ids'",
        ),
        ([SCALE], None, (1,), "no_batch_dimension", "scale [1]"),
        ([], None, (1,), "no_batch_dimension", "no inputs"),
        ([X], None, (), "batch_sizes", "is []"),
        ([X], None, (1, 0), "batch_sizes", "is [1, 0]"),
        ([TensorSpec(name="t", dtype="str", shape=("batch",))], None, (1,), "input_dtype", "dtype str"),
        ([TensorSpec(name="t", dtype="bfloat16", shape=("batch",))], None, (1,), "input_dtype", "dtype bfloat16"),
        ([TensorSpec(name="t", dtype="complex64", shape=("batch",))], None, (1,), "input_dtype", "dtype complex64"),
    ],
)
def test_unusable_inputs_and_examples_are_refused_by_name(specs, example, sizes, code, part) -> None:  # type: ignore[no-untyped-def]
    with refused(code, part):
        make_samples(specs, example, sizes)
