"""Samples for a comparison: the training run's example and seeded random values, at several batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_release.errors import SampleRefused
from onnx_release.limits import BATCH_SIZE_MAX, SAMPLE_SEEDS, VARYING_DIMENSION_SIZE
from onnx_release.records import TensorSpec
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.input_spec import InputSpec

_RELOG = "Log the model again with a signature and an input example that agree (see mlflow.models.infer_signature)."


def batch_axis(spec: TensorSpec) -> int | None:
    """Return the axis named ``batch``, else the first varying axis, else None: the tensor has no batch."""
    if "batch" in spec.shape:
        return spec.shape.index("batch")
    return next((axis for axis, size in enumerate(spec.shape) if isinstance(size, str)), None)


def make_samples(
    inputs: Sequence[TensorSpec],
    example: Mapping[str, npt.NDArray[Any]] | None,
    batch_sizes: Sequence[int],
    ranges: Mapping[str, InputSpec] | None = None,
) -> list[Sample]:
    """Return the samples of a comparison. The same arguments give the same values.

    The first sample is the unchanged example. At every batch size follow the example, repeated or cut, and a seeded
    sample. Samples of further seeds follow at the smallest batch size.

    Seeded values are uniform within an input's range. Without a range, floats have the mean and the standard deviation
    of the example, and integers lie within its smallest and largest value, because an embedding has no row beyond
    them. Without an example, floats are standard normal and integers are 0 or 1. A varying dimension other than the
    batch has the size of the example, else `VARYING_DIMENSION_SIZE`.

    Args:
        inputs: The inputs of the model.
        example: One array per input, or None.
        batch_sizes: The batch sizes, each from 1 to `BATCH_SIZE_MAX`.
        ranges: The ranges of values by input name.

    Raises:
        SampleRefused: The example does not fit the inputs, no input has a batch, a dtype is not numeric, or a batch
            size is out of range.
    """
    if all(batch_axis(spec) is None for spec in inputs):
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs) or "the model has no inputs"
        raise SampleRefused(
            "The model's inputs", f"have no batch dimension that varies: {shapes}", _RELOG, code="no_batch_dimension"
        )
    if not batch_sizes or not all(1 <= size <= BATCH_SIZE_MAX for size in batch_sizes):
        raise SampleRefused(
            "The parameter `batch_sizes`",
            f"is {list(batch_sizes)}; it must have one or more sizes from 1 to {BATCH_SIZE_MAX}",
            "Correct it.",
            code="batch_sizes",
        )
    for spec in inputs:
        _numpy_dtype(spec)
    samples = []
    if example is not None:
        unchanged = checked_example(inputs, example)
        samples.append(unchanged)
        samples += [_resized(unchanged, inputs, size) for size in batch_sizes if size != unchanged.batch_size]
    sizes = varying_sizes(inputs, example)
    for seed in SAMPLE_SEEDS:
        # Further seeds can show another difference; a large batch of them costs time and shows the same.
        for size in batch_sizes if seed == SAMPLE_SEEDS[0] else (min(batch_sizes),):
            arrays = seeded_arrays(inputs, sizes | dict.fromkeys(batch_names(inputs), size), seed, example, ranges)
            samples.append(Sample(name=f"seed {seed}", inputs=arrays, batch_size=size, seeded=True))
    return samples


def seeded_arrays(
    inputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    seed: int,
    example: Mapping[str, npt.NDArray[Any]] | None = None,
    ranges: Mapping[str, InputSpec] | None = None,
) -> Arrays:
    """Return one random array per input, with the distribution that `make_samples` documents.

    Args:
        inputs: The inputs of the model.
        sizes: The size of every varying dimension, by its name.
        seed: The seed of the random values.
        example: One array per input, or None.
        ranges: The ranges of values by input name.
    """
    example = example or {}
    return {
        spec.name: _seeded(
            spec,
            [sizes[size] if isinstance(size, str) else size for size in spec.shape],
            bounds_of(spec, None, ranges) or example.get(spec.name),
            np.random.default_rng([seed, i]),
        )
        for i, spec in enumerate(inputs)
    }


def bounds_of(
    spec: TensorSpec,
    example: Mapping[str, npt.NDArray[Any]] | None,
    ranges: Mapping[str, InputSpec] | None,
) -> tuple[float, float] | None:
    """Return the smallest and the largest value of an input, from its range or else from the example."""
    bounds = ranges[spec.name].bounds() if ranges and spec.name in ranges else None
    if bounds is not None or not example or spec.name not in example:
        return bounds
    return float(example[spec.name].min()), float(example[spec.name].max())


def checked_example(
    inputs: Sequence[TensorSpec], example: Mapping[str, npt.NDArray[Any]], subject: str = "The run's input example"
) -> Sample:
    """Return arrays as the sample ``example`` after comparing them with the inputs.

    Args:
        inputs: The inputs of the model.
        example: One array per input, by name.
        subject: The source of the arrays, for the message.

    Raises:
        SampleRefused: An array is missing, unknown or empty, has another dtype, shape or batch size, or contains NaN or
            infinity. The message lists every problem.
    """
    problems = []
    if missing := sorted({spec.name for spec in inputs} - set(example)):
        problems.append(f"lacks the input {', '.join(missing)}")
    if extra := sorted(set(example) - {spec.name for spec in inputs}):
        problems.append(f"has {', '.join(extra)}, which the model does not take")
    for spec in inputs:
        if spec.name in example:
            problems += [f"has an input '{spec.name}' that {why}" for why in _array_problems(spec, example[spec.name])]
    sizes = {
        example[spec.name].shape[axis] for spec in inputs if not problems and (axis := batch_axis(spec)) is not None
    }
    if len(sizes) > 1:
        problems.append(f"has inputs of different batch sizes: {sorted(sizes)}")
    if problems:
        raise SampleRefused(subject, "; ".join(problems), _RELOG, code="example_mismatch")
    return Sample(name="example", inputs=dict(example), batch_size=sizes.pop())


def _array_problems(spec: TensorSpec, array: npt.NDArray[Any]) -> list[str]:
    _numpy_dtype(spec)
    # A foreign byte order is visible in the text of the dtype, not in its name.
    dtype = array.dtype.name if array.dtype.isnative else str(array.dtype)
    found = spec.mismatches(TensorSpec(name=spec.name, dtype=dtype, shape=array.shape), sizes={})
    if array.size == 0:
        found.append("is empty")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        found.append("contains NaN or infinity")
    return found


def batch_names(inputs: Sequence[TensorSpec]) -> list[str]:
    """Return the name of the batch dimension of each input that has one."""
    axes = [(spec, batch_axis(spec)) for spec in inputs]
    return [str(spec.shape[axis]) for spec, axis in axes if axis is not None]


def varying_sizes(inputs: Sequence[TensorSpec], example: Mapping[str, npt.NDArray[Any]] | None) -> dict[str, int]:
    """Return one size per varying dimension, by its name. Inputs that share a name share the size."""
    sizes: dict[str, int] = {}
    for spec in inputs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str):
                sizes[size] = VARYING_DIMENSION_SIZE if example is None else example[spec.name].shape[axis]
    return sizes


def _resized(sample: Sample, inputs: Sequence[TensorSpec], size: int) -> Sample:
    arrays = {}
    for spec in inputs:
        axis = batch_axis(spec)
        array = sample.inputs[spec.name]
        # Rows repeat in order, so a shorter batch is the beginning of the example.
        arrays[spec.name] = array if axis is None else array.take(np.arange(size) % sample.batch_size, axis=axis)
    return Sample(name=sample.name, inputs=arrays, batch_size=size)


def _numpy_dtype(spec: TensorSpec) -> np.dtype[Any]:
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "fiub":
        raise SampleRefused(
            f"The input '{spec.name}'",
            f"has dtype {spec.dtype}; samples exist only for floats, integers and booleans",
            "Give the model a numeric input, and cast it inside the model.",
            code="input_dtype",
        )
    return dtype


def _seeded(
    spec: TensorSpec,
    shape: list[int],
    source: npt.NDArray[Any] | tuple[float, float] | None,
    generator: np.random.Generator,
) -> npt.NDArray[Any]:
    """Draw random values within bounds, or with the distribution of an example."""
    dtype = _numpy_dtype(spec)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        low, high = (source.min(), source.max()) if isinstance(source, np.ndarray) else source or (0, 1)
        return generator.integers(int(low), int(high), shape, dtype=dtype, endpoint=True)
    if isinstance(source, tuple):
        return np.asarray(generator.uniform(*source, shape), dtype=dtype)
    values = generator.standard_normal(shape)
    if isinstance(source, np.ndarray):
        # A constant example has a deviation of 0, and a constant sample would show few differences.
        values = values * (float(source.std(dtype=np.float64)) or 1.0) + float(source.mean(dtype=np.float64))
    limit = np.finfo(dtype).max
    return np.asarray(values.clip(-limit, limit), dtype=dtype)
