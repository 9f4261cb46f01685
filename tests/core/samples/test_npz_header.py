"""Hostile ``.npz`` files: bombs, absurd shapes and headers, objects. Each is refused with little memory."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from onnx_release.samples.edge_cases import read_arrays
from onnx_release.samples.npz_header import read_header
from tests.core.models import Payload
from tests.refusals import refused


def npy(shape: str, descr: str = "'<f4'", data: bytes = b"", version: int = 1) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


def nested() -> bytes:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("x.npy", npy("(1,)", data=b"0000"))
    return inner.getvalue()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (npy("(4096, 4096, 4096)"), "npz_too_large"),
        (npy(f"({2**62}, {2**62})"), "npz_too_large"),
        (npy("(-1, 5)"), "unreadable_npz"),
        (npy("(0, 'x')"), "unreadable_npz"),
        (npy("()", descr="'O'"), "unreadable_npz"),
        (npy("()", descr="__import__('os').mkdir('made')"), "unreadable_npz"),
        (npy("(1,)", descr="[('a', 'O')]"), "unreadable_npz"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 2**26, "unreadable_npz"),
        (npy("(1,)" + " " * 40_000, version=2), "unreadable_npz"),
        (nested(), "unreadable_npz"),
        (pickle.dumps({"a": 1}), "unreadable_npz"),
    ],
    ids=["huge", "overflow", "negative", "text", "objects", "call", "fields", "bomb", "header", "zip", "pickle"],
)
@pytest.mark.parametrize("read", [read_header, read_arrays])
def test_a_hostile_array_is_refused_with_little_memory(tmp_path: Path, content: bytes, code: str, read: object) -> None:
    path = tmp_path / "inputs.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    tracemalloc.start()
    try:
        with refused(code, "The file"):
            read(path, "The file", "Save it.")  # type: ignore[operator]
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_the_code_of_an_object_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "inputs.npz"
    np.savez(path, x=np.array([Payload(tmp_path / "marker")], dtype=object), allow_pickle=True)
    with refused("unreadable_npz"):
        read_arrays(path, "The file", "Save it.")
    assert not (tmp_path / "marker").exists()
