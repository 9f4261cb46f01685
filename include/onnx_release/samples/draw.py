"""Seeded values of a model's inputs: mixtures of the example's rows, or uniform values within given bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_release.records import TensorSpec
from onnx_release.samples.dimensions import Dimensions, batch_axes
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.input_spec import InputSpec

Array = npt.NDArray[Any]

# Whole numbers of more values than this are quantities, such as pixels from 0 to 255. Fewer are categories or flags.
_CATEGORIES_MAX = 32


def seeded_arrays(
    dimensions: Dimensions,
    sizes: Mapping[str, int],
    seed: int,
    example: Mapping[str, Array] | None = None,
    ranges: Mapping[str, InputSpec] | None = None,
) -> Arrays:
    """Return one random array per input.

    Each row lies between two random rows of the example, the same two in every input. Categories, flags and NaN come
    from the nearer row, and whole numbers stay whole. So positive values stay positive, shares still add up to one, a
    mask still fits its ids, and each column keeps its range. Integers are uniform within the range of their column. A
    single row is mixed with its own values in another order. An example of equal values (zeros, for example) has no
    range: floats are then normal around it.

    An input with a range in the parameter `input_spec` is uniform within it. Without an example, floats are standard
    normal, and integers are 0 or 1.

    Args:
        dimensions: The dimensions of the inputs.
        sizes: The size of every varying dimension, by its name.
        seed: The seed of the random values.
        example: One array per input, or None.
        ranges: The ranges of values by input name.
    """
    axes = batch_axes(dimensions.inputs)
    rows, resized, placeholder = _Rows.draw(1, 1, seed), {}, False
    if example is not None:
        known = {name: size for name, size in sizes.items() if name != dimensions.batch}
        resized = dimensions.resized(example, known)
        if dimensions.batch is not None:
            rows = _Rows.draw(dimensions.batch_size(resized), sizes[dimensions.batch], seed)
        placeholder = all((array == array.flat[0]).all() for array in example.values())
    arrays = {}
    for index, spec in enumerate(dimensions.inputs):
        generator = np.random.default_rng([seed, index])
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)
        bounds = ranges[spec.name].bounds() if ranges and spec.name in ranges else None
        if bounds is not None or spec.name not in resized:
            array = _uniform(spec.dtype, shape, bounds, generator)
        elif placeholder and resized[spec.name].dtype.kind == "f":
            array = generator.standard_normal(shape) + float(resized[spec.name].flat[0])
        else:
            array = _mixed(spec, resized[spec.name], axes[spec.name], rows, generator)
            if example is not None and _all_rows_have_a_flag(example[spec.name]):
                # A mask that is cut to a shorter length may lose its valid part. Attention to nothing is undefined.
                array = np.where(array.any(axis=-1, keepdims=True), array, np.arange(array.shape[-1]) == 0)
        arrays[spec.name] = _cast(array, spec.dtype)
    return arrays


def _all_rows_have_a_flag(array: Array) -> bool:
    """Return True for an array of zeros and ones, or booleans, without a row of zeros."""
    if array.ndim < 2 or array.dtype.kind not in "biu" or not array.size:
        return False
    return bool(array.min() >= 0 and array.max() <= 1 and array.any(axis=-1).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Two rows of the example for each row of a sample, and the weight of the farther one, below a half."""

    near: Array
    far: Array
    weight: Array

    @classmethod
    def draw(cls, rows: int, count: int, seed: int) -> _Rows:
        generator = np.random.default_rng([seed, rows, count])
        near = generator.integers(0, rows, count)
        # Another row, unless there is only one.
        far = (near + generator.integers(1, max(rows, 2), count)) % rows
        # Most rows lie close to a row of the example, so the spread of the sample is close to the example's.
        return cls(near=near, far=far, weight=0.5 * generator.random(count) ** 2)


def _uniform(
    dtype: str, shape: tuple[int, ...], bounds: tuple[float, float] | None, generator: np.random.Generator
) -> Array:
    kind = np.dtype(dtype).kind
    if kind == "b":
        return generator.integers(0, 2, shape)
    if kind in "iu":
        low, high = bounds or (0, 1)
        return generator.integers(int(low), int(high), shape, dtype=np.dtype(dtype), endpoint=True)
    return generator.standard_normal(shape) if bounds is None else generator.uniform(*bounds, shape)


def _cast(array: Array, dtype: str) -> Array:
    """Return floats in a dtype of less range without a new infinity."""
    if array.dtype.kind == "f" and np.dtype(dtype).kind == "f":
        limit = np.finfo(dtype).max
        array = np.where(np.isfinite(array), np.clip(array, -limit, limit), array)
    return np.asarray(array, dtype=dtype)


def _mixed(spec: TensorSpec, array: Array, axis: int | None, rows: _Rows, generator: np.random.Generator) -> Array:
    """Return a mixture of the rows of an array, which has its final size in every dimension except the batch."""
    without_batch = axis is None
    # An input without a batch is one row.
    array = array[np.newaxis] if axis is None else np.moveaxis(array, axis, 0)
    rest = [size for index, size in enumerate(spec.shape) if index != axis]
    # Positions along a varying dimension are alike, and those along a fixed one may have their own meaning each.
    pooled = (0, *(index for index, size in enumerate(rest, start=1) if isinstance(size, str)))
    if without_batch:
        zeros = np.zeros(1, np.int64)
        rows = _Rows(near=zeros, far=zeros, weight=rows.weight[:1])
    if array.dtype.kind == "b":
        mixed = _mixed_flags(array, rows, generator)
    elif array.dtype.kind in "iu":
        mixed = _mixed_integers(array, rows, pooled, generator)
    else:
        mixed = _mixed_floats(array, rows, pooled, generator)
    return mixed[0] if without_batch else np.moveaxis(mixed, 0, axis or 0)


def _mixed_flags(array: Array, rows: _Rows, generator: np.random.Generator) -> Array:
    """Return rows of the example, or for a mask that is equal everywhere rows with a shorter valid part."""
    near = array[rows.near]
    if array.any() != array.all():
        return near
    if near.ndim == 1:
        return generator.integers(0, 2, near.shape)
    valid = generator.integers(1, near.shape[-1], (*near.shape[:-1], 1), endpoint=True)
    return np.where(np.arange(near.shape[-1]) < valid, near, ~near)


def _mixed_integers(array: Array, rows: _Rows, pooled: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Return integers within the range of their column. Flags come from the example's rows."""
    near = array[rows.near]
    low, high = array.min(axis=pooled, keepdims=True), array.max(axis=pooled, keepdims=True)
    if array.size == 0 or int(array.max()) - int(array.min()) <= 1:
        return near
    if (low == high).all():
        low, high = array.min(), array.max()
    return generator.integers(low, high, near.shape, dtype=array.dtype, endpoint=True)


def _mixed_floats(array: Array, rows: _Rows, pooled: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Return values between the two rows of the example, within the range of their column."""
    near, far = array[rows.near], array[rows.far]
    if (array == array[:1]).all():
        far = _shuffled(near, generator)
    wide = np.float32 if array.dtype == np.float16 else array.dtype
    weight = rows.weight.reshape(-1, *[1] * (array.ndim - 1)).astype(wide)
    with np.errstate(all="ignore"):
        mixed = near.astype(wide) * (1 - weight) + far.astype(wide) * weight
        # Rounding may lead out of the range.
        mixed = np.clip(mixed, np.minimum(near, far), np.maximum(near, far))
        whole = ((array == np.round(array)) | ~np.isfinite(array)).all(axis=pooled, keepdims=True)
    steps = np.broadcast_to(whole, array.shape) & np.isfinite(array)
    if len(np.unique(array[steps])) > _CATEGORIES_MAX:
        mixed = np.where(whole, np.round(mixed), mixed)
    else:
        mixed = np.where(whole, near, mixed)
    return np.where(np.isfinite(near) & np.isfinite(far), mixed, near)


def _shuffled(rows: Array, generator: np.random.Generator) -> Array:
    """Return each row with its positions in another order; the last dimension keeps its columns if there are others."""
    if rows[0].size == 1:
        return np.multiply(rows, 0.8, dtype=rows.dtype)
    if rows.ndim <= 2:
        return generator.permuted(rows, axis=-1)
    positions = rows.reshape(len(rows), -1, rows.shape[-1])
    order = np.argsort(generator.random(positions.shape[:2]), axis=1)
    shuffled: Array = np.take_along_axis(positions, order[..., np.newaxis], axis=1).reshape(rows.shape)
    return shuffled
