"""Varying dimensions of a model's inputs: the batch, the other ones, and the sizes of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_release.limits import VARYING_DIMENSION_SIZE
from onnx_release.records import TensorSpec
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.dimension_names import batch_name, computed_size, varying_names
from onnx_release.trained.input_spec import InputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """Varying dimensions of a model's inputs. The same name has the same size in every input.

    The batch is the dimension ``batch``, else the first varying dimension that all inputs share. Inputs such as the
    nodes and the edges of a graph share none. A batch size of n then means n times the example: each input's first
    varying dimension has n times its usual size.

    Attributes:
        inputs: The inputs of the model.
        usual: The size of each varying dimension in the example. Without an example it is the first one that the
            parameter `input_spec` lists, else `VARYING_DIMENSION_SIZE`.
        batch: The name of the batch, or None.
        leading: The names of the dimensions that follow the batch size.
    """

    inputs: tuple[TensorSpec, ...]
    usual: dict[str, int]
    batch: str | None
    leading: tuple[str, ...]

    @classmethod
    def of(
        cls,
        inputs: Sequence[TensorSpec],
        example: Mapping[str, npt.NDArray[Any]] | None = None,
        ranges: Mapping[str, InputSpec] | None = None,
    ) -> Dimensions:
        """Return the dimensions of inputs and their sizes in an example."""
        usual: dict[str, int] = {}
        for spec in inputs:
            for axis, size in enumerate(spec.shape):
                if isinstance(size, str) and size not in usual:
                    listed = listed_sizes(size, ranges)
                    usual[size] = (listed or [VARYING_DIMENSION_SIZE])[0]
                    if example is not None:
                        usual[size] = example[spec.name].shape[axis]
        batch = batch_name(inputs)
        leading = [batch] if batch is not None else [name for spec in inputs for name in varying_names(spec)[:1]]
        return cls(inputs=tuple(inputs), usual=usual, batch=batch, leading=tuple(dict.fromkeys(leading)))

    @property
    def others(self) -> list[str]:
        """The names to vary on their own: all except the batch and the computed ones (``length + 1``)."""
        return [name for name in self.usual if name != self.batch and name.isidentifier()]

    def sizes(self, batch_size: int, **changes: int) -> dict[str, int]:
        """Return the size of every varying dimension at a batch size.

        Args:
            batch_size: The size of the batch, or the factor of each leading dimension.
            changes: Sizes of single dimensions, by name.
        """
        factor = {name: self.usual[name] * batch_size for name in self.leading}
        sizes = self.usual | ({self.batch: batch_size} if self.batch is not None else factor) | changes
        computed = {name: computed_size(name, sizes) for name in sizes if not name.isidentifier()}
        return sizes | {name: size for name, size in computed.items() if size is not None and size > 0}

    def batch_size(self, arrays: Arrays) -> int:
        """Return the batch size of arrays that fit the inputs; 1 when the inputs share no batch."""
        axes = batch_axes(self.inputs)
        return next((arrays[name].shape[axis] for name, axis in axes.items() if axis is not None), 1)

    def resized(self, arrays: Mapping[str, npt.NDArray[Any]], sizes: Mapping[str, int]) -> Arrays:
        """Return arrays of other sizes. Values repeat in order, so a smaller size is the beginning of the array.

        A dimension that is not in `sizes` keeps its size.
        """
        found = {}
        for spec in self.inputs:
            array = arrays[spec.name]
            for axis, name in enumerate(spec.shape):
                if isinstance(name, str) and sizes.get(name, array.shape[axis]) != array.shape[axis]:
                    array = array.take(np.arange(sizes[name]) % array.shape[axis], axis=axis)
            found[spec.name] = array
        return found


def batch_axes(inputs: Sequence[TensorSpec]) -> dict[str, int | None]:
    """Return the axis of the batch for each input by its name; None for an input without a batch."""
    batch = batch_name(inputs)
    return {spec.name: spec.shape.index(batch) if batch in spec.shape else None for spec in inputs}


def sizes_of(inputs: Sequence[TensorSpec], arrays: Arrays) -> dict[str, int]:
    """Return the size of every varying dimension in arrays that fit the inputs."""
    return Dimensions.of(inputs, arrays).usual


def listed_sizes(dimension: str, ranges: Mapping[str, InputSpec] | None) -> list[int]:
    """Return the sizes to compare at that the parameter `input_spec` lists for a dimension."""
    listed = [size for spec in (ranges or {}).values() for size in spec.sizes.get(dimension, ())]
    return list(dict.fromkeys(listed))
