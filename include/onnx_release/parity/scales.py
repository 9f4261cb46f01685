"""Scales of an output's columns over all samples: the spread of their values, and the rounding of their dtype.

An output may contain a large offset (map coordinates) or columns of unlike size. A difference is therefore compared
with the spread of its own column. The difference that rounding causes is larger than that for an offset column, so each
column has a floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnx_release.parity.measures import Array, ColumnScale, columns
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

# Rounding steps of a column's values that are allowed at least, and at most where PyTorch's own outputs differ.
# Measured on 90 models: a sum that ends with its offset is 0 to 1 steps off, and layers that carry an offset 2 to 5.
STEPS_MIN, STEPS_MAX = 2.0, 32.0
# PyTorch's own difference between equal rows of two batch sizes, times this. ONNX Runtime was at most twice as far off.
OWN_DIFFERENCE_FACTOR = 4.0
# The largest own difference that is allowed, relative to the spread. A model whose rows depend on the batch has more.
OWN_DIFFERENCE_SHARE = 1e-3
# Above this part of the spread, and below these rounding steps at 1, PyTorch's own difference is all that varies.
NOISE_SHARE, STEPS_NOISE = 0.1, 8.0
# Sigmoid, tanh and exponentials are exact to a step at 1, also where their value is small.
ABSOLUTE_SHARE = 2.5e-4

Case = tuple[Sample, Arrays]


def output_scales(cases: Iterable[Case]) -> dict[str, tuple[ColumnScale, ...]]:
    """Return the scales of each float output over the samples that decide, by name.

    Args:
        cases: The samples with PyTorch's outputs.
    """
    deciding = [case for case in cases if case[0].decides]
    found = {}
    for name in dict.fromkeys(name for _, outputs in deciding for name in outputs):
        named = [(sample, outputs[name]) for sample, outputs in deciding if name in outputs]
        arrays = [array for _, array in named if array.dtype.kind == "f" and np.isfinite(array).any()]
        if arrays:
            found[name] = tuple(_scale(arrays, axis, _own_differences(named, axis)) for axis in _axes(arrays))
    return found


def _axes(arrays: Sequence[Array]) -> list[int | None]:
    """Return the axes whose indices are columns: the last, and the second of three or more (channels of a map).

    The first axis is the batch. An axis whose size varies has no columns. Without such an axis, the output is one
    column.
    """
    ranks = {array.ndim for array in arrays}
    rank = ranks.pop() if len(ranks) == 1 else 0
    axes = [-1, 1][: max(rank - 1, 0)]
    fixed = [axis for axis in axes if len({array.shape[axis] for array in arrays}) == 1]
    return [*fixed] or [None]


def _scale(arrays: Sequence[Array], axis: int | None, own_differences: Array) -> ColumnScale:
    """Return the scale of the columns along one axis; `arrays` have finite values."""
    # Scaled first, so that squares neither overflow nor vanish.
    largest = max(float(np.abs(array[np.isfinite(array)]).max()) for array in arrays) or 1.0
    count, mean, squares = np.zeros(1), np.zeros(1), np.zeros(1)
    for array in arrays:
        values = columns(array, axis).astype(np.float64) / largest
        finite = np.isfinite(values)
        number = finite.sum(axis=0)
        middle = np.where(finite, values, 0.0).sum(axis=0) / np.maximum(number, 1)
        total = np.maximum(count + number, 1)
        squares = squares + (np.where(finite, values - middle, 0.0) ** 2).sum(axis=0)
        squares = squares + (middle - mean) ** 2 * count * number / total
        mean, count = mean + (middle - mean) * number / total, count + number
    spread = np.sqrt(squares / np.maximum(count, 1))
    magnitude = np.hypot(mean, spread)
    overall = float(np.sqrt((magnitude**2 * count).sum() / count.sum())) * largest
    spread, magnitude = spread * largest, magnitude * largest

    step = float(np.finfo(arrays[0].dtype).eps)
    # A float64 output may end a computation in float32.
    coarse = max(step, float(np.finfo(np.float32).eps))
    absolute = STEPS_MIN * min(coarse, max(ABSOLUTE_SHARE / STEPS_MIN, step) * overall)
    own = _of_like_columns(own_differences, magnitude)
    allowed = np.maximum(STEPS_MAX * coarse * magnitude, OWN_DIFFERENCE_SHARE * spread)
    # The values of such a column are rounding themselves, for example the mean of normalized features.
    is_noise = (own > NOISE_SHARE * spread) & (own < STEPS_NOISE * coarse)
    allowed = np.where(is_noise, STEPS_NOISE * coarse, np.minimum(OWN_DIFFERENCE_FACTOR * own, allowed))
    rounding = np.maximum(np.maximum(STEPS_MIN * step * magnitude, absolute), allowed)
    # A spread of a few rounding steps is noise: the column is constant.
    scale = np.where(spread > STEPS_MAX * step * magnitude, spread, magnitude)
    return ColumnScale(axis=axis, spread=spread, scale=scale, rounding=rounding)


def _own_differences(cases: Sequence[tuple[Sample, Array]], axis: int | None) -> Array:
    """Return the largest difference of each column between equal rows of the example at several batch sizes.

    It is PyTorch's own rounding: another batch size runs other kernels. Zero where no rows are equal.
    """
    examples = [
        array.astype(np.float64)
        for sample, array in cases
        if sample.name == "example" and array.size and array.ndim and array.shape[0] == sample.batch_size
    ]
    found = np.zeros(1)
    base = max(examples, key=len, default=found)
    for array in examples:
        # The rows of each size are those of the example in order, repeated where it has fewer.
        if array.shape[1:] == base.shape[1:]:
            finite = np.isfinite(array) & np.isfinite(base[: len(array)])
            difference = np.abs(np.subtract(base[: len(array)], array, out=np.zeros_like(array), where=finite))
            found = np.maximum(found, columns(difference, axis).max(axis=0))
    return found


def _of_like_columns(differences: Array, magnitude: Array) -> Array:
    """Return the largest difference among the columns of the same power of ten: few rows show few differences."""
    differences = np.broadcast_to(differences, magnitude.shape)
    with np.errstate(divide="ignore"):
        powers = np.where(magnitude > 0, np.floor(np.log10(magnitude)), 0.0)
    _, group = np.unique(powers, return_inverse=True)
    largest = np.zeros(group.max(initial=0) + 1)
    np.maximum.at(largest, group, differences)
    return np.asarray(largest[group])
