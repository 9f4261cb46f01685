"""Hostile ``.npz`` files: bombs, absurd shapes and headers, objects. Each is refused with little memory."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnx_release.errors import SampleRefused
from onnx_release.samples.edge_cases import read_arrays
from onnx_release.samples.npz_header import read_header
from soak.hostile_files import ARRAYS
from tests.core.models import Payload
from tests.refusals import refused


@pytest.mark.parametrize("content", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("read", [read_header, read_arrays])
def test_a_hostile_array_is_refused_with_little_memory(tmp_path: Path, content: bytes, read: object) -> None:
    path = tmp_path / "inputs.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    tracemalloc.start()
    try:
        with pytest.raises(SampleRefused, match="The file") as caught:
            read(path, "The file", "Save it.")  # type: ignore[operator]
        assert caught.value.code in ("npz_too_large", "unreadable_npz")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_the_code_of_an_object_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    np.savez(path, x=np.array([Payload(tmp_path / "marker")], dtype=object), allow_pickle=True)
    with refused("unreadable_npz"):
        read_arrays(path, "The file", "Save it.")
    assert not (tmp_path / "marker").exists()
