"""Names, dtypes and shapes in an ``.npz`` file, read without its arrays."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from onnx_release.errors import SampleRefused
from onnx_release.limits import NPZ_MAX_BYTES
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.records import TensorSpec
from onnx_release.text import shorten

_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_SUFFIX = ".npy"
# numpy accepts headers of up to 10,000 characters.
_HEADER_MAX_BYTES = 2**14


def read_header(path: Path, subject: str, action: str) -> tuple[TensorSpec, ...]:
    """Return the description of every array of a file. Nothing is unpickled.

    Args:
        path: The file.
        subject: The name of the file in a message.
        action: The sentence of a message that explains the format.

    Raises:
        SampleRefused: The file is not an archive of arrays, is empty, or contains objects (``unreadable_npz``), or its
            arrays have more than `NPZ_MAX_BYTES` in memory (``npz_too_large``).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = [_array(archive, name) for name in archive.namelist()]
    except Exception as error:  # a foreign file: its readers raise errors of any kind
        raise_machine_failure(error)
        problem = f"cannot be read as an .npz file: {shorten(error)}"
        raise SampleRefused(subject, problem, action, code="unreadable_npz") from error
    if not arrays:
        raise SampleRefused(subject, "contains no arrays", action, code="unreadable_npz")
    # A compressed file of some kB can declare terabytes.
    if (size := sum(size for _, size in arrays)) > NPZ_MAX_BYTES:
        problem = f"has arrays of {size / 2**30:.3g} GiB; the limit is {NPZ_MAX_BYTES / 2**30:.3g} GiB"
        raise SampleRefused(subject, problem, "Give one batch of inputs, not a dataset.", code="npz_too_large")
    return tuple(spec for spec, _ in arrays)


def _array(archive: zipfile.ZipFile, name: str) -> tuple[TensorSpec, int]:
    """Return the description of an array, and its size in bytes."""
    if not name.endswith(_SUFFIX):
        raise ValueError(f"it contains {name!r:.80}, which is not an array")
    with archive.open(name) as member:
        header = io.BytesIO(member.read(_HEADER_MAX_BYTES))
    shape, _, dtype = _READERS[np.lib.format.read_magic(header)](header)
    if min(shape, default=0) < 0:
        raise ValueError(f"the array {name.removesuffix(_SUFFIX)!r:.80} has a negative size")
    if dtype.hasobject:
        raise ValueError(f"the array {name.removesuffix(_SUFFIX)!r:.80} contains Python objects")
    spec = TensorSpec(name=name.removesuffix(_SUFFIX), dtype=dtype.name, shape=shape)
    return spec, math.prod(map(int, shape)) * dtype.itemsize
