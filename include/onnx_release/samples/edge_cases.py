"""Inputs that ask for more than the training run showed: a user's own, extreme values, other sizes of what may vary."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_release.errors import Refused
from onnx_release.limits import BATCH_SIZE_MAX, SAMPLE_SEEDS, UNSEEN_BATCH_SIZE
from onnx_release.records import TensorSpec
from onnx_release.samples.generate import batch_names, bounds_of, checked_example, seeded_arrays, varying_sizes
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.input_spec import InputSpec

_FORM = "Save it with numpy.savez(path, **{input name: array, …}), every array with the same batch."


def read_npz(path: Path, inputs: Sequence[TensorSpec], name: str) -> Sample:
    """Read a user's inputs: one array per input, under its name, any batch size up to `BATCH_SIZE_MAX`.

    :raises Refused: when it is no such file, holds pickled objects, or does not fit the inputs.
    """
    subject = f"inputs {name!r:.200}"
    sample = checked_example(inputs, read_arrays(path, subject, _FORM), subject)
    if sample.batch_size > BATCH_SIZE_MAX:
        raise Refused(subject, f"have a batch of {sample.batch_size}, at most {BATCH_SIZE_MAX} is run", _FORM)
    return replace(sample, name="given")


def read_arrays(path: Path, subject: str, form: str) -> Arrays:
    """Read every array of an ``.npz`` file; raises `Refused` about `subject`, with the `form` to save it in."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise Refused(subject, f"cannot be read as an .npz file: {str(error)[:300]}", form) from error


def probing_samples(
    inputs: Sequence[TensorSpec], example: Arrays | None, ranges: Mapping[str, InputSpec]
) -> Iterator[Sample]:
    """Yield extreme values, and each varying dimension but the batch at other sizes, all at `UNSEEN_BATCH_SIZE`."""
    batch = dict.fromkeys(batch_names(inputs), UNSEEN_BATCH_SIZE)
    sizes = varying_sizes(inputs, example)
    for name in ("zeros", "extremes"):
        arrays = seeded_arrays(inputs, sizes | batch, SAMPLE_SEEDS[0], example, ranges)
        edged = {spec.name: _edge(name, arrays[spec.name], bounds_of(spec, example, ranges)) for spec in inputs}
        yield Sample(name=name, inputs=edged, batch_size=UNSEEN_BATCH_SIZE, probing=True)
    for dimension in varying_dimensions(inputs):
        for size in _other_sizes(dimension, sizes[dimension], ranges):
            arrays = seeded_arrays(inputs, {**sizes, **batch, dimension: size}, SAMPLE_SEEDS[0], example, ranges)
            label = f"{dimension} {size}"
            yield Sample(name=label, inputs=arrays, batch_size=UNSEEN_BATCH_SIZE, probing=True, varied=dimension)


def varying_dimensions(inputs: Sequence[TensorSpec]) -> list[str]:
    """Return the names of the dimensions that vary and are no batch; a computed one (``length + 1``) is none."""
    batches = set(batch_names(inputs))
    named = [size for spec in inputs for size in spec.shape if isinstance(size, str)]
    return [name for name in dict.fromkeys(named) if name not in batches and name.isidentifier()]


def _other_sizes(dimension: str, size: int, ranges: Mapping[str, InputSpec]) -> list[int]:
    said = [value for spec in ranges.values() for value in spec.sizes.get(dimension, ())]
    # Shorter, odd, longer and a multiple: a model may bound the length, or want it divisible.
    usual = [max(2, size // 2), size + 1, 2 * size]
    return [value for value in dict.fromkeys(said or usual) if value != size]


def _edge(name: str, array: npt.NDArray[np.generic], bounds: tuple[float, float] | None) -> npt.NDArray[np.generic]:
    low, high = bounds or (0.0, 1.0)
    if array.dtype.kind == "b" or (array.dtype.kind in "iu" and high - low <= 1):
        # Two values are a mask's, and a mask of nothing but zeros asks for what nobody defines: the seeded ones stay.
        return array
    alternating = np.arange(array.size).reshape(array.shape) % 2 == 0
    if name == "zeros":
        return np.full_like(array, min(max(0.0, low), high))
    return np.where(alternating, high, low).astype(array.dtype)
