"""What both sides are fed: the training run's own example, and seeded random samples, at several batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_release.errors import Refused
from onnx_release.limits import BATCH_SIZE_MAX, SAMPLE_SEEDS, VARYING_DIMENSION_SIZE
from onnx_release.records import TensorSpec

Arrays = dict[str, npt.NDArray[Any]]
"""Tensors by name."""

_RELOG = "Log the model again with a signature and an input example that agree (see mlflow.models.infer_signature)."


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One set of inputs; `name` says where its values come from and is the same at every batch size."""

    name: str
    inputs: Arrays
    batch_size: int


def batch_axis(spec: TensorSpec) -> int | None:
    """Return the axis called ``batch``, else the first that varies, else None: such a tensor has no batch."""
    if "batch" in spec.shape:
        return spec.shape.index("batch")
    return next((axis for axis, size in enumerate(spec.shape) if isinstance(size, str)), None)


def make_samples(
    inputs: Sequence[TensorSpec], example: Mapping[str, npt.NDArray[Any]] | None, batch_sizes: Sequence[int]
) -> list[Sample]:
    """Return the example as it is, and at every batch size the example (tiled or cut) and one sample per seed.

    Seeded floats have the example's mean and standard deviation, integers stay within its range (an embedding has no
    row beyond it); without an example they are standard normal, and 0 or 1. A dimension that varies and is not the
    batch has the example's size, else `VARYING_DIMENSION_SIZE`. The same arguments give the same values.

    :raises Refused: when the example does not fit the specification, a dtype is no number, or no input has a batch.
    """
    _require_batch_sizes(inputs, batch_sizes)
    for spec in inputs:
        _numpy_dtype(spec)
    samples = []
    if example is not None:
        own = _checked_example(inputs, example)
        samples.append(own)
        samples += [_resized(own, inputs, size) for size in batch_sizes if size != own.batch_size]
    sizes = _varying_sizes(inputs, example)
    for seed in SAMPLE_SEEDS:
        for size in batch_sizes:
            arrays = {
                spec.name: _seeded(spec, {**sizes, _batch_name(spec): size}, example, np.random.default_rng([seed, i]))
                for i, spec in enumerate(inputs)
            }
            samples.append(Sample(name=f"seed {seed}", inputs=arrays, batch_size=size))
    return samples


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


def _checked_example(inputs: Sequence[TensorSpec], example: Mapping[str, npt.NDArray[Any]]) -> Sample:
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
        raise Refused("The run's input example", "; ".join(problems), _RELOG)
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


def _batch_name(spec: TensorSpec) -> str:
    axis = batch_axis(spec)
    return "" if axis is None else str(spec.shape[axis])


def _varying_sizes(inputs: Sequence[TensorSpec], example: Mapping[str, npt.NDArray[Any]] | None) -> dict[str, int]:
    """Return one size for each varying dimension, by its name: two inputs that share a name share the size."""
    sizes: dict[str, int] = {}
    for spec in inputs:
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str):
                sizes[size] = VARYING_DIMENSION_SIZE if example is None else example[spec.name].shape[axis]
    return sizes


def _seeded(
    spec: TensorSpec,
    sizes: Mapping[str, int],
    example: Mapping[str, npt.NDArray[Any]] | None,
    generator: np.random.Generator,
) -> npt.NDArray[Any]:
    shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
    like = None if example is None else example[spec.name]
    dtype = _numpy_dtype(spec)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        low, high = (0, 1) if like is None else (int(like.min()), int(like.max()))
        return generator.integers(low, high, shape, dtype=dtype, endpoint=True)
    values = generator.standard_normal(shape)
    if like is not None:
        # A constant example has no spread to copy, and a constant sample would compare next to nothing.
        values = values * (float(like.std(dtype=np.float64)) or 1.0) + float(like.mean(dtype=np.float64))
    limit = np.finfo(dtype).max
    return np.asarray(values.clip(-limit, limit), dtype=dtype)
