"""The file of reference outputs: names of all kinds, sizes, and files that were changed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_release.limits import REFERENCE_FILE, REFERENCE_READ_MAX_BYTES
from onnx_release.records import TensorSpec
from onnx_release.samples.reference import first_rows, fit_samples, read_reference, write_reference
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays
from tests.refusals import refused

HOSTILE = ("x", "file", "index", "0.inputs.0", "../../etc/passwd", "a\0b", "a/b\\c", "<b>", "", "🐟" * 300)
X = (TensorSpec(name="x", dtype="float32", shape=("batch", 2)),)


def sample(name: str, rows: int, *, decides: bool = True) -> Sample:
    values = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    return Sample(name=name, inputs={"x": values}, batch_size=rows, decides=decides)


def double(one: Sample) -> Arrays:
    return {"y": one.inputs["x"] * 2}


def test_any_name_and_dtype_is_read_as_it_was_written(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {name: np.full((2, 3), number) for number, name in enumerate(HOSTILE)}
    arrays |= {
        "bool": np.array([True]),
        "half": np.array([np.nan, np.inf], np.float16),
        "scalar": np.array(3, np.uint8),
    }
    made = Sample(name="\x1b[31m", inputs=arrays, batch_size=2)
    write_reference(tmp_path, [(made, arrays)])
    first = (tmp_path / REFERENCE_FILE).read_bytes()
    write_reference(tmp_path, [(made, arrays)])
    assert (tmp_path / REFERENCE_FILE).read_bytes() == first
    cases = read_reference(tmp_path)
    assert cases
    ((read, outputs),) = cases
    assert (read.name, read.batch_size, read.decides) == (made.name, 2, True)
    for found in (read.inputs, outputs):
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    assert read_reference(tmp_path / "elsewhere") is None


def test_samples_that_are_too_large_are_cut_or_left_out() -> None:
    # A row has 8 bytes of input and 8 of output.
    samples = [sample("a", 1), sample("b", 8), sample("c", 1), sample("b", 8)]
    cases, notes = fit_samples(samples, X, double, 80)
    assert [(one.name, one.batch_size) for one, _ in cases] == [("a", 1), ("b", 4)]
    np.testing.assert_array_equal(cases[1][1]["y"], sample("b", 4).inputs["x"] * 2)
    assert len(notes) == 3
    assert "4 of its 8 rows" in notes[0]
    cases, notes = fit_samples(samples, X, double, 1000)
    assert (len(cases), len(notes)) == (3, 1)
    assert fit_samples(samples, X, lambda _: None, 1000) == ([], [])
    assert fit_samples(samples, X, double, 1)[0] == []
    assert first_rows(samples[1], X, 3).inputs["x"].shape == (3, 2)


ENTRY = {"name": "a", "batch_size": 1, "decides": True, "inputs": {"x": "x"}, "outputs": {"y": "y"}}
GOOD: dict[str, Any] = {"x": np.zeros(1), "y": np.zeros(1)}


def index_of(value: Any) -> dict[str, Any]:
    return GOOD | {"index": np.frombuffer(json.dumps(value).encode(), np.uint8)}


SOUND = index_of({"samples": [ENTRY]})
DAMAGED: dict[str, Any] = {
    "no sample that decides": index_of({"samples": [ENTRY | {"decides": False}]}),
    "an unknown field": index_of({"samples": [ENTRY | {"path": "/etc/passwd"}]}),
    "no samples": index_of({"samples": []}),
    "another value": index_of([1]),
    "a missing array": {name: array for name, array in SOUND.items() if name != "y"},
    "no index": GOOD,
    "deep JSON": GOOD | {"index": np.frombuffer(b"[" * 100_000, np.uint8)},
    "bytes of no text": GOOD | {"index": np.array([255], np.uint8)},
    "texts": SOUND | {"x": np.array(["a"])},
    "objects": SOUND | {"x": np.array([{}], dtype=object)},
    "an archive that unpacks to more": SOUND | {"x": np.zeros(REFERENCE_READ_MAX_BYTES + 8, np.uint8)},
}


@pytest.mark.parametrize("kind", [*DAMAGED, "a pickle"])
def test_a_damaged_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / REFERENCE_FILE
    if kind in DAMAGED:
        np.savez_compressed(path, **DAMAGED[kind])
    else:
        path.write_bytes(pickle.dumps(SOUND))
    with refused("unreadable_npz", REFERENCE_FILE):
        read_reference(tmp_path)
