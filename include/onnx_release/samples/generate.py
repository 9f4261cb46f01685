"""Samples for a comparison: the training run's example and seeded random values, at several batch sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_release.errors import SampleRefused
from onnx_release.limits import BATCH_SIZE_MAX, SAMPLE_SEEDS
from onnx_release.records import TensorSpec
from onnx_release.samples.dimensions import Dimensions
from onnx_release.samples.draw import seeded_arrays
from onnx_release.samples.sample import Sample
from onnx_release.trained.input_spec import InputSpec, input_spec_text

_ONE_SIZE = (
    "A dimension has one size in all inputs. Save arrays of one batch size, or give each dimension its own name by the "
    "parameter `input_spec`."
)


def make_samples(
    inputs: Sequence[TensorSpec],
    example: Mapping[str, npt.NDArray[Any]] | None,
    batch_sizes: Sequence[int],
    ranges: Mapping[str, InputSpec] | None = None,
) -> list[Sample]:
    """Return the samples of a comparison. The same arguments give the same values.

    The first sample is the unchanged example. At every batch size follow the example, repeated or cut, and a seeded
    sample (see `draw.seeded_arrays`). Samples of further seeds follow at the smallest batch size. A varying dimension
    other than the batch has its usual size (see `Dimensions`).

    Args:
        inputs: The inputs of the model.
        example: One array per input, or None.
        batch_sizes: The batch sizes, each from 1 to `BATCH_SIZE_MAX`.
        ranges: The ranges of values by input name.

    Raises:
        SampleRefused: The example does not fit the inputs, no input has a batch, a dtype is not numeric, or a batch
            size is out of range.
    """
    if not Dimensions.of(inputs).leading:
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in inputs) or "the model has no inputs"
        raise SampleRefused(
            "The model's inputs",
            f"have no batch dimension that varies: {shapes}",
            "Write -1 for the batch in the signature, or a name in the parameter `input_spec`: "
            f"{input_spec_text(inputs)}.",
            code="no_batch_dimension",
        )
    if not batch_sizes or not all(1 <= size <= BATCH_SIZE_MAX for size in batch_sizes):
        raise SampleRefused(
            "The parameter `batch_sizes`",
            f"is {list(batch_sizes)}; it must have one or more sizes from 1 to {BATCH_SIZE_MAX}",
            "Correct it.",
            code="batch_sizes",
        )
    for spec in inputs:
        require_numeric(spec)
    samples = []
    if example is not None:
        unchanged = checked_example(inputs, example)
        samples.append(unchanged)
        dimensions = Dimensions.of(inputs, example, ranges)
        samples += [
            replace(unchanged, inputs=dimensions.resized(unchanged.inputs, dimensions.sizes(size)), batch_size=size)
            for size in batch_sizes
            if size != unchanged.batch_size
        ]
    else:
        dimensions = Dimensions.of(inputs, None, ranges)
    for seed in SAMPLE_SEEDS:
        # Further seeds can show another difference; a large batch of them costs time and shows the same.
        for size in batch_sizes if seed == SAMPLE_SEEDS[0] else (min(batch_sizes),):
            arrays = seeded_arrays(dimensions, dimensions.sizes(size), seed, example, ranges)
            samples.append(Sample(name=f"seed {seed}", inputs=arrays, batch_size=size, seeded=True))
    return samples


def bounds_of(
    spec: TensorSpec,
    example: Mapping[str, npt.NDArray[Any]] | None,
    ranges: Mapping[str, InputSpec] | None,
) -> tuple[float, float] | None:
    """Return the smallest and the largest value of an input, from its range or else from the example."""
    bounds = ranges[spec.name].bounds() if ranges and spec.name in ranges else None
    if bounds is not None or not example or spec.name not in example:
        return bounds
    finite = example[spec.name][np.isfinite(example[spec.name])]
    return float(finite.min()), float(finite.max())


def checked_example(
    inputs: Sequence[TensorSpec], example: Mapping[str, npt.NDArray[Any]], subject: str = "The run's input example"
) -> Sample:
    """Return arrays as the sample ``example`` after comparing them with the inputs.

    Args:
        inputs: The inputs of the model.
        example: One array per input, by name.
        subject: The source of the arrays, for the message.

    Raises:
        SampleRefused: An array is missing, unknown or empty, has another dtype or shape or no finite value, or a
            dimension has several sizes. The message lists every problem.
    """
    problems, actions = [], []
    if missing := sorted({spec.name for spec in inputs} - set(example)):
        problems.append(f"lacks the input {', '.join(missing)}")
    if extra := sorted(set(example) - {spec.name for spec in inputs}):
        problems.append(f"has {', '.join(extra)}, which the model does not take")
    for spec in inputs:
        if spec.name in example:
            problems += [f"has an input '{spec.name}' that {why}" for why in _array_problems(spec, example[spec.name])]
    if problems:
        needed = ", ".join(f"'{spec.name}' {spec.dtype} {list(spec.shape)}" for spec in inputs)
        actions.append(f"The model takes {needed}: save such arrays, or correct the signature or the `input_spec`.")
    else:
        problems = list(_unequal_sizes(inputs, example))
        actions.append(_ONE_SIZE)
    if problems:
        raise SampleRefused(subject, "; ".join(problems), " ".join(actions), code="example_mismatch")
    return Sample(name="example", inputs=dict(example), batch_size=Dimensions.of(inputs).batch_size(dict(example)))


def _array_problems(spec: TensorSpec, array: npt.NDArray[Any]) -> list[str]:
    require_numeric(spec)
    # A foreign byte order is visible in the text of the dtype, not in its name.
    dtype = array.dtype.name if array.dtype.isnative else str(array.dtype)
    found = spec.mismatches(TensorSpec(name=spec.name, dtype=dtype, shape=array.shape), sizes={})
    if array.size == 0:
        found.append("is empty")
    # Single missing values are data: the model decides about them.
    elif array.dtype.kind == "f" and not np.isfinite(array).any():
        found.append("has no finite value")
    return found


def _unequal_sizes(inputs: Sequence[TensorSpec], example: Mapping[str, npt.NDArray[Any]]) -> Iterator[str]:
    """Yield a problem for each dimension that has several sizes."""
    found: dict[str, dict[int, str]] = {}
    for spec in inputs:
        for name, size in zip(spec.shape, example[spec.name].shape, strict=True):
            if isinstance(name, str):
                found.setdefault(name, {}).setdefault(size, spec.name)
    for name, sizes in found.items():
        if len(sizes) > 1:
            listed = ", ".join(f"{size} in '{input_name}'" for size, input_name in sizes.items())
            yield f"has different sizes of the dimension '{name}': {listed}"


def require_numeric(spec: TensorSpec) -> None:
    """Raise `SampleRefused` (``input_dtype``) for a dtype other than floats, integers and booleans."""
    try:
        kind = np.dtype(spec.dtype).kind
    except TypeError:
        kind = "O"
    if kind not in "fiub":
        raise SampleRefused(
            f"The input '{spec.name}'",
            f"has dtype {spec.dtype}; samples exist only for floats, integers and booleans",
            "Give the model a numeric input, and cast it inside the model.",
            code="input_dtype",
        )
