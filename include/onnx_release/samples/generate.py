"""What both sides are fed: the training run's own example, and seeded random samples, at several batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_release.errors import Refused
from onnx_release.limits import BATCH_SIZE_MAX, SAMPLE_SEEDS, VARYING_DIMENSION_SIZE
from onnx_release.records import TensorSpec
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.input_spec import InputSpec

_RELOG = "Log the model again with a signature and an input example that agree (see mlflow.models.infer_signature)."


def batch_axis(spec: TensorSpec) -> int | None:
    """Return the axis called ``batch``, else the first that varies, else None: such a tensor has no batch."""
    if "batch" in spec.shape:
        return spec.shape.index("batch")
    return next((axis for axis, size in enumerate(spec.shape) if isinstance(size, str)), None)


def make_samples(
    inputs: Sequence[TensorSpec],
    example: Mapping[str, npt.NDArray[Any]] | None,
    batch_sizes: Sequence[int],
    ranges: Mapping[str, InputSpec] | None = None,
) -> list[Sample]:
    """Return the example as it is, at every batch size the example (tiled or cut) and a seeded sample, and other seeds.

    Seeded values lie evenly within the input's range where `ranges` has one. Else floats have the example's mean and
    standard deviation, and integers stay within its range (an embedding has no row beyond it); without an example they
    are standard normal, and 0 or 1. A dimension that varies and is not the batch has the example's size, else
    `VARYING_DIMENSION_SIZE`. Other seeds than the first are for the smallest batch size alone. The same arguments give
    the same values.

    :raises Refused: when the example does not fit the specification, a dtype is no number, or no input has a batch.
    """
    _require_batch_sizes(inputs, batch_sizes)
    for spec in inputs:
        _numpy_dtype(spec)
    samples = []
    if example is not None:
        own = checked_example(inputs, example)
        samples.append(own)
        samples += [_resized(own, inputs, size) for size in batch_sizes if size != own.batch_size]
    sizes = varying_sizes(inputs, example)
    for seed in SAMPLE_SEEDS:
        # Other values are worth another run, a large batch of them is not.
        for size in batch_sizes if seed == SAMPLE_SEEDS[0] else (min(batch_sizes),):
            arrays = seeded_arrays(inputs, sizes | dict.fromkeys(batch_names(inputs), size), seed, example, ranges)
            samples.append(Sample(name=f"seed {seed}", inputs=arrays, batch_size=size))
    return samples


def seeded_arrays(
    inputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    seed: int,
    example: Mapping[str, npt.NDArray[Any]] | None = None,
    ranges: Mapping[str, InputSpec] | None = None,
) -> Arrays:
    """Return one array per input, as `make_samples` describes them; `sizes` has every varying dimension's."""
    likes = example or {}
    return {
        spec.name: _seeded(
            spec,
            [sizes[size] if isinstance(size, str) else size for size in spec.shape],
            bounds_of(spec, None, ranges) or likes.get(spec.name),
            np.random.default_rng([seed, i]),
        )
        for i, spec in enumerate(inputs)
    }


def bounds_of(
    spec: TensorSpec,
    example: Mapping[str, npt.NDArray[Any]] | None,
    ranges: Mapping[str, InputSpec] | None,
) -> tuple[float, float] | None:
    """Return the least and the largest value that an input may have, as far as the range or the example says."""
    said = ranges[spec.name].bounds() if ranges and spec.name in ranges else None
    if said is not None or not example or spec.name not in example:
        return said
    return float(example[spec.name].min()), float(example[spec.name].max())


def _require_batch_sizes(inputs: Sequence[TensorSpec], batch_sizes: Sequence[int]) -> None:
    if all(batch_axis(spec) is None for spec in inputs):
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs) or "none at all"
        raise Refused("The model's inputs", f"have no batch dimension that varies: {shapes}", _RELOG)
    wrong = [size for size in batch_sizes if not 1 <= size <= BATCH_SIZE_MAX]
    if wrong or not batch_sizes:
        raise Refused(
            "The batch sizes",
            f"are {list(batch_sizes)}, not one or more of 1 to {BATCH_SIZE_MAX}",
            "Correct the parameter `batch_sizes`.",
        )


def _numpy_dtype(spec: TensorSpec) -> np.dtype[Any]:
    try:
        dtype = np.dtype(spec.dtype)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "fiub":
        raise Refused(
            f"input '{spec.name}'",
            f"is of dtype {spec.dtype}, for which no samples can be made: only floats, integers and booleans",
            "Give the model a numeric input, and cast inside it.",
        )
    return dtype


def checked_example(
    inputs: Sequence[TensorSpec], example: Mapping[str, npt.NDArray[Any]], subject: str = "The run's input example"
) -> Sample:
    """Return the arrays as a sample; raises `Refused`, about `subject`, when they do not fit the inputs."""
    problems = []
    if missing := sorted({spec.name for spec in inputs} - set(example)):
        problems.append(f"lacks {', '.join(missing)}")
    if extra := sorted(set(example) - {spec.name for spec in inputs}):
        problems.append(f"has {', '.join(extra)}, of which the signature knows nothing")
    problems += [why for spec in inputs if spec.name in example for why in _misfits(spec, example[spec.name])]
    sizes = {
        example[spec.name].shape[axis] for spec in inputs if not problems and (axis := batch_axis(spec)) is not None
    }
    if len(sizes) > 1:
        problems.append(f"has inputs of different batch sizes: {sorted(sizes)}")
    if problems:
        raise Refused(subject, "; ".join(problems), _RELOG)
    return Sample(name="example", inputs=dict(example), batch_size=sizes.pop())


def _misfits(spec: TensorSpec, array: npt.NDArray[Any]) -> list[str]:
    found = []
    if array.dtype != _numpy_dtype(spec):
        found.append(f"has '{spec.name}' as {array.dtype}, not {spec.dtype}")
    fits = array.ndim == len(spec.shape) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        found.append(f"has '{spec.name}' of shape {list(array.shape)}, not {list(spec.shape)}")
    if array.size == 0:
        found.append(f"has no values in '{spec.name}'")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        found.append(f"holds NaN or infinity in '{spec.name}'")
    return found


def _resized(own: Sample, inputs: Sequence[TensorSpec], size: int) -> Sample:
    arrays = {}
    for spec in inputs:
        axis = batch_axis(spec)
        array = own.inputs[spec.name]
        # Rows repeat in order, so a cut example is its own beginning.
        arrays[spec.name] = array if axis is None else array.take(np.arange(size) % own.batch_size, axis=axis)
    return Sample(name=own.name, inputs=arrays, batch_size=size)


def batch_names(inputs: Sequence[TensorSpec]) -> list[str]:
    """Return the name that each input's batch dimension goes by."""
    axes = [(spec, batch_axis(spec)) for spec in inputs]
    return [str(spec.shape[axis]) for spec, axis in axes if axis is not None]


def varying_sizes(inputs: Sequence[TensorSpec], example: Mapping[str, npt.NDArray[Any]] | None) -> dict[str, int]:
    """Return one size for each varying dimension, by its name: two inputs that share a name share the size."""
    sizes: dict[str, int] = {}
    for spec in inputs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str):
                sizes[size] = VARYING_DIMENSION_SIZE if example is None else example[spec.name].shape[axis]
    return sizes


def _seeded(
    spec: TensorSpec,
    shape: list[int],
    like: npt.NDArray[Any] | tuple[float, float] | None,
    generator: np.random.Generator,
) -> npt.NDArray[Any]:
    """Draw values within bounds, or like an example's."""
    dtype = _numpy_dtype(spec)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        low, high = (like.min(), like.max()) if isinstance(like, np.ndarray) else like or (0, 1)
        return generator.integers(int(low), int(high), shape, dtype=dtype, endpoint=True)
    if isinstance(like, tuple):
        return np.asarray(generator.uniform(*like, shape), dtype=dtype)
    values = generator.standard_normal(shape)
    if isinstance(like, np.ndarray):
        # A constant example has no spread to copy, and a constant sample would compare next to nothing.
        values = values * (float(like.std(dtype=np.float64)) or 1.0) + float(like.mean(dtype=np.float64))
    limit = np.finfo(dtype).max
    return np.asarray(values.clip(-limit, limit), dtype=dtype)
