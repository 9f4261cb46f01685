"""File of reference outputs in an artifact folder: inputs, and the outputs that PyTorch returned for them.

It is an ``.npz`` archive without Python objects. The array ``index`` is JSON with the names of all samples, inputs and
outputs. The other arrays have generated names, because a model may call its tensors anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnx_release.errors import RecordRefused, SampleRefused
from onnx_release.limits import REFERENCE_FILE, REFERENCE_READ_MAX_BYTES
from onnx_release.records import TensorSpec
from onnx_release.records.base import Record
from onnx_release.samples.dimensions import Dimensions
from onnx_release.samples.edge_cases import read_arrays
from onnx_release.samples.npz_header import read_header
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

Case = tuple[Sample, Arrays]
"""A sample, and PyTorch's outputs for it."""

_INDEX = "index"
_SUBJECT = f"The file {REFERENCE_FILE}"
_ACTION = "Download the model again. If the file stays unreadable, release the training run again."


class _Entry(Record):
    """Sample of the index: fields of `Sample`, and the name of the array of each input and output."""

    name: str
    batch_size: int
    decides: bool
    inputs: dict[str, str]
    outputs: dict[str, str]


class _Index(Record):
    samples: tuple[_Entry, ...]


def fit_samples(
    samples: Iterable[Sample],
    inputs: Sequence[TensorSpec],
    run: Callable[[Sample], Arrays | None],
    max_bytes: int,
) -> tuple[list[Case], list[str]]:
    """Run samples in their order until their arrays fill a number of bytes. A large sample is cut to fewer rows.

    Args:
        samples: The samples.
        inputs: The inputs of the model.
        run: Returns PyTorch's outputs, or None for a sample that is not usable.
        max_bytes: The largest size of all arrays.

    Returns:
        The samples with outputs, and one sentence for each sample that was left out or cut.
    """
    cases: list[Case] = []
    notes: list[str] = []
    free = max_bytes
    for sample in samples:
        outputs = run(sample)
        if outputs is None:
            continue
        whole = needed = _size(sample, outputs)
        used = sample
        rows = sample.batch_size * free // needed
        if needed > free and rows:
            used = _cut(sample, inputs, rows)
            outputs = run(used)
            needed = free + 1 if outputs is None else _size(used, outputs)
        if outputs is None or needed > free or any(_is_same(used, kept) for kept, _ in cases):
            notes.append(f"'{sample.name}' at batch size {sample.batch_size} ({whole} bytes) was left out")
            continue
        if used is not sample:
            notes.append(f"'{sample.name}' has {used.batch_size} of its {sample.batch_size} rows ({whole} bytes)")
        cases.append((used, outputs))
        free -= needed
    return cases, notes


def first_rows(sample: Sample, inputs: Sequence[TensorSpec], rows: int) -> Sample:
    """Return a sample with at most `rows` rows."""
    return sample if sample.batch_size <= rows else _cut(sample, inputs, rows)


def write_reference(folder: Path, cases: Sequence[Case]) -> None:
    """Write `REFERENCE_FILE` into an artifact folder. The same cases give the same bytes.

    Args:
        folder: The artifact folder.
        cases: The samples with PyTorch's outputs.
    """
    arrays: Arrays = {}
    entries = []
    for number, (sample, outputs) in enumerate(cases):
        named = {}
        for side, found in (("inputs", sample.inputs), ("outputs", outputs)):
            keys = {name: f"{number}.{side}.{position}" for position, name in enumerate(found)}
            arrays |= {keys[name]: array for name, array in found.items()}
            named[side] = keys
        entries.append(
            _Entry(name=sample.name, batch_size=sample.batch_size, decides=sample.decides, **named),
        )
    index = json.dumps(_Index(samples=tuple(entries)).to_dict()).encode()
    # numpy gives the members of an archive a fixed date.
    np.savez(folder / REFERENCE_FILE, allow_pickle=False, **{_INDEX: np.frombuffer(index, dtype=np.uint8), **arrays})


def read_reference(folder: Path) -> list[Case] | None:
    """Read `REFERENCE_FILE` of an artifact folder. Nothing is unpickled.

    Returns:
        The samples with PyTorch's outputs; None for a folder without the file.

    Raises:
        SampleRefused: `unreadable_npz`, if the file is too large, damaged, or has other content.
    """
    path = folder / REFERENCE_FILE
    if not path.is_file():
        return None
    # The sizes in the header come first: a small archive may unpack to any size.
    size = sum(_header_size(spec) for spec in read_header(path, _SUBJECT, _ACTION))
    if size > REFERENCE_READ_MAX_BYTES:
        raise _unreadable(f"has {size} bytes of arrays; the limit is {REFERENCE_READ_MAX_BYTES}")
    arrays = read_arrays(path, _SUBJECT, _ACTION)
    try:
        text = arrays[_INDEX].tobytes().decode()
        index = _Index.from_dict(json.loads(text))
        cases = [
            (
                Sample(
                    name=entry.name,
                    inputs={name: arrays[key] for name, key in entry.inputs.items()},
                    batch_size=entry.batch_size,
                    decides=entry.decides,
                ),
                {name: arrays[key] for name, key in entry.outputs.items()},
            )
            for entry in index.samples
        ]
    except (KeyError, ValueError, RecursionError) as error:
        raise _unreadable("has no index, or names an array that is missing") from error
    except RecordRefused as refusal:
        raise _unreadable(f"has an index that cannot be used: {refusal.subject} {refusal.problem}") from refusal
    if not any(sample.decides for sample, _ in cases):
        raise _unreadable("has no sample that decides")
    return cases


def _unreadable(problem: str) -> SampleRefused:
    return SampleRefused(_SUBJECT, problem, _ACTION, code="unreadable_npz")


def _header_size(spec: TensorSpec) -> int:
    sizes = [int(size) for size in spec.shape]
    try:
        itemsize = np.dtype(spec.dtype).itemsize
    except TypeError:
        # numpy does not accept its own name for a dtype of texts.
        itemsize = 0
    if not itemsize or min(sizes, default=0) < 0:
        raise _unreadable(f"has an array {spec.name!r:.80} of {spec.dtype} {sizes}")
    return math.prod(sizes) * itemsize


def _size(sample: Sample, outputs: Arrays) -> int:
    return sum(array.nbytes for array in (*sample.inputs.values(), *outputs.values()))


def _cut(sample: Sample, inputs: Sequence[TensorSpec], rows: int) -> Sample:
    dimensions = Dimensions.of(inputs, sample.inputs)
    sizes = dimensions.sizes(rows)
    return replace(sample, inputs=dimensions.resized(sample.inputs, sizes), batch_size=rows)


def _is_same(sample: Sample, other: Sample) -> bool:
    return (sample.name, sample.batch_size) == (other.name, other.batch_size)
