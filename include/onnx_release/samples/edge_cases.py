"""Samples beyond the training run's example: a user's file, extreme values, and other sizes of varying dimensions."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnx_release.errors import SampleRefused
from onnx_release.limits import BATCH_SIZE_MAX, SAMPLE_SEEDS, UNSEEN_BATCH_SIZE
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.records import TensorSpec
from onnx_release.samples.dimensions import Dimensions, listed_sizes
from onnx_release.samples.draw import seeded_arrays
from onnx_release.samples.generate import bounds_of, checked_example
from onnx_release.samples.npz_header import read_header
from onnx_release.samples.sample import Sample
from onnx_release.text import shorten
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.input_spec import InputSpec

_SAVE_NPZ = "Save it with numpy.savez(path, **{input name: array, …}), with the same batch size in every array."


def read_npz(path: Path, inputs: Sequence[TensorSpec], name: str) -> Sample:
    """Return a user's inputs as the sample ``user``.

    Args:
        path: An ``.npz`` file with one array per input, under its name, of one batch size up to `BATCH_SIZE_MAX`.
        inputs: The inputs of the model.
        name: The name of the file for messages, for example its URI.

    Raises:
        SampleRefused: The file cannot be read, contains pickled objects, or does not fit the inputs.
    """
    subject = f"The input file {name!r:.200}"
    sample = checked_example(inputs, read_arrays(path, subject, _SAVE_NPZ), subject)
    if sample.batch_size > BATCH_SIZE_MAX:
        problem = f"has a batch size of {sample.batch_size}; the limit is {BATCH_SIZE_MAX}"
        raise SampleRefused(subject, problem, _SAVE_NPZ, code="batch_too_large")
    return replace(sample, name="user")


def read_arrays(path: Path, subject: str, action: str) -> Arrays:
    """Return every array of an ``.npz`` file. Pickled objects are refused unopened.

    Args:
        path: The file.
        subject: The name of the file in a message.
        action: The sentence of a message that explains the format.

    Raises:
        SampleRefused: The file cannot be read, or is too large.
    """
    read_header(path, subject, action)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise_machine_failure(error)
        problem = f"cannot be read as an .npz file: {shorten(error)}"
        raise SampleRefused(subject, problem, action, code="unreadable_npz") from error


def probing_samples(
    inputs: Sequence[TensorSpec], example: Arrays | None, ranges: Mapping[str, InputSpec]
) -> Iterator[Sample]:
    """Yield samples of extreme values and of other sizes, all with the batch size `UNSEEN_BATCH_SIZE`.

    Every varying dimension except the batch takes the sizes of its range, else half, one more and twice the example's.

    Args:
        inputs: The inputs of the model.
        example: One array per input, or None.
        ranges: The ranges of values and sizes by input name.
    """
    dimensions, seed = Dimensions.of(inputs, example, ranges), SAMPLE_SEEDS[0]
    usual = dimensions.sizes(UNSEEN_BATCH_SIZE)
    for name in ("zeros", "extremes"):
        arrays = seeded_arrays(dimensions, usual, seed, example, ranges)
        extreme = {spec.name: _extreme(name, arrays[spec.name], bounds_of(spec, example, ranges)) for spec in inputs}
        yield Sample(name=name, inputs=extreme, batch_size=UNSEEN_BATCH_SIZE, probing=True, decides=False)
    for varied, size in _other_sizes(dimensions, ranges):
        sizes = dimensions.sizes(UNSEEN_BATCH_SIZE, **dict.fromkeys(varied, size))
        arrays = seeded_arrays(dimensions, sizes, seed, example, ranges)
        label = f"{' = '.join(varied)} {size}"
        yield Sample(name=label, inputs=arrays, batch_size=UNSEEN_BATCH_SIZE, probing=True, varied=varied)


def _other_sizes(dimensions: Dimensions, ranges: Mapping[str, InputSpec]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield dimensions and another size for them: each one alone, then together those of one size in the example.

    Two texts may need the same length, and an image the same height and width, without one name for both.
    """
    usual, together = dimensions.sizes(UNSEEN_BATCH_SIZE), dict[int, list[str]]()
    for name in dimensions.others:
        known = dimensions.usual[name]
        listed = [size for size in listed_sizes(name, ranges) if size != known]
        # Shorter, odd, longer and a multiple: a model may bound the length or require a divisor.
        for size in dict.fromkeys(listed or [max(2, known // 2), known + 1, 2 * known]):
            if size != usual[name]:
                yield (name,), size
        if not listed:
            together.setdefault(usual[name], []).append(name)
    for size, names in together.items():
        if len(names) > 1:
            yield from ((tuple(names), other) for other in (size + 1, 2 * size))


def _extreme(name: str, array: npt.NDArray[np.generic], bounds: tuple[float, float] | None) -> npt.NDArray[np.generic]:
    """Return an array with zeros, or with the lowest and the highest value in turn. NaN and masks stay."""
    low, high = bounds or (0.0, 1.0)
    if array.dtype.kind == "b" or (array.dtype.kind in "iu" and high - low <= 1):
        # Two values are probably a mask. The result of a mask of zeros is undefined, so the seeded values stay.
        return array
    values: npt.NDArray[np.generic] = np.full(array.shape, min(max(0.0, low), high))
    if name == "extremes":
        values = np.where(np.arange(array.size).reshape(array.shape) % 2 == 0, high, low)
    return (np.where(np.isnan(array), array, values) if array.dtype.kind == "f" else values).astype(array.dtype)
