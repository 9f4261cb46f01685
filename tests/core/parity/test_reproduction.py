from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_release.limits import ParityLimits
from onnx_release.parity import reproduction
from onnx_release.parity.compare_outputs import compare_outputs
from onnx_release.parity.measures import ColumnScale
from onnx_release.parity.reproduction import ReproductionCase, write_reproduction
from onnx_release.records import Divergence
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

HOSTILE_INPUT, HOSTILE_OUTPUT = "../../x'\"; raise SystemExit(0)\n{sample}", "/etc/`y`\n# {where} <b>"
FOUND = Divergence(
    sample="seed 1", batch_size=2, node="node_*add*", op_type="Add", value="add", module="head.0", module_type="Linear",
    mae=1e-3, max_abs=0.25, scale=1.5, compared=12, note="its weight is another\n# not a title",
)  # fmt: skip


def _save_model(folder: Path, input_name: str, output_name: str, kind: int = onnx.TensorProto.FLOAT) -> None:
    """y = x + [1, 2], with the weight in a separate file."""
    weight = onnx.numpy_helper.from_array(np.array([1, 2], onnx.helper.tensor_dtype_to_np_dtype(kind)), "w")
    values = [onnx.helper.make_tensor_value_info(name, kind, ["batch", 2]) for name in (input_name, output_name)]
    node = onnx.helper.make_node("Add", [input_name, "w"], [output_name])
    graph = onnx.helper.make_graph([node], "add", values[:1], values[1:], [weight])
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    folder.mkdir()
    onnx.save(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )


def _case(tmp_path: Path, off: Any, limits: ParityLimits | None = None, **changes: Any) -> ReproductionCase:
    """A model that adds 1 and 2, while PyTorch's values differ from that by `off`."""
    names = changes.pop("names", ("x", "y"))
    dtype = np.dtype(changes.pop("dtype", "float32"))
    _save_model(tmp_path / "artifact", *names, onnx.helper.np_dtype_to_tensor_dtype(dtype))
    x = np.arange(4).reshape(2, 2).astype(dtype)
    y = (x + np.array([1, 2])).astype(dtype)
    return ReproductionCase(
        sample=Sample(name="seed 1", inputs={names[0]: x}, batch_size=2),
        reference={names[1]: np.asarray(y + off, dtype)},
        candidate={names[1]: y},
        limits=(limits or ParityLimits()).to_dict(),
        failures=["output 'y' (seed 1, batch 2): MAE 0.1 is not below 1e-05"],
        divergence=FOUND,
        versions={"torch": "2.13.0"},
        model=tmp_path / "artifact",
        sha256="ab" * 32,
        **changes,
    )


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script from elsewhere, without this project on the path."""
    command = [sys.executable, str(folder / "reproduce.py"), *arguments]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd="/")


def test_the_script_reproduces_the_failure(tmp_path: Path) -> None:
    files = write_reproduction(tmp_path / "bundle", _case(tmp_path, off=[[0.0, 0.5], [0.0, 0.0]]))
    assert [path.name for path in files] == [
        "README.md", "case.json", "inputs.npz", "measures.py", "model.onnx", "model.onnx.data",
        "onnxruntime_outputs.npz", "pytorch_outputs.npz", "reproduce.py", "scales.npz", "versions.json",
    ]  # fmt: skip
    done = _run(tmp_path / "bundle")
    assert done.returncode == 1, done.stderr
    assert "'y': mae 0.125, max_abs 0.5" in done.stdout
    assert "outside the limits: MAE 0.25 in column 1 is not below" in done.stdout


def test_a_corrected_model_is_within_the_limits(tmp_path: Path) -> None:
    write_reproduction(tmp_path / "bundle", _case(tmp_path, off=0.0))
    done = _run(tmp_path / "bundle", str(tmp_path / "artifact" / "model.onnx"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "within the limits" in done.stdout


_LOOSE = {"mae_max": None, "sqnr_min_db": None}
_NAN = [[np.nan, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("limits", "off", "dtype"),
    [
        (ParityLimits(mae_max=0.1, sqnr_min_db=None), 0.1, "float64"),
        (ParityLimits(mae_max=0.1, sqnr_min_db=None), 0.3, "float64"),
        (ParityLimits(**_LOOSE, max_abs=0.5), [[0.0, 0.5], [0, 0]], "float32"),
        (ParityLimits(**_LOOSE, max_abs=0.25), [[0.0, 0.5], [0, 0]], "float32"),
        (ParityLimits(**_LOOSE, rtol=0.1, atol=0.01), [[0.0, 0.2], [0.0, 0.0]], "float32"),
        (ParityLimits(**_LOOSE, rtol=0.1, atol=0.01), [[0.0, 0.3], [0.0, 0.0]], "float32"),
        (ParityLimits(**_LOOSE, cosine_min=0.999), [[2.0, 0.0], [0.0, 0.0]], "float32"),
        (ParityLimits(**_LOOSE, cosine_min=0.5), [[2.0, 0.0], [0.0, 0.0]], "float32"),
        (ParityLimits(mae_max=None, sqnr_min_db=40.0), 0.02, "float32"),
        (ParityLimits(mae_max=None, sqnr_min_db=40.0), 0.2, "float32"),
        (ParityLimits(mae_max=1e9, sqnr_min_db=None), _NAN, "float32"),
        (ParityLimits(), 0.0, "float32"),
        (ParityLimits(), [[0, 1], [0, 0]], "int64"),
        (ParityLimits(agreement_min=0.75), [[0, 1], [0, 0]], "int64"),
        (ParityLimits(agreement_min=None), [[0, 1], [0, 0]], "int64"),
    ],
)
def test_the_script_has_the_verdict_of_the_release(tmp_path: Path, limits: ParityLimits, off: Any, dtype: str) -> None:
    case = _case(tmp_path, off=off, limits=limits, dtype=dtype)
    (result,) = compare_outputs(case.reference, case.candidate, case.sample, limits)
    write_reproduction(tmp_path / "bundle", case)
    done = _run(tmp_path / "bundle")
    assert done.returncode == (0 if result.passed else 1), (done.stdout, done.stderr, result.failures)


def test_names_are_neither_paths_nor_code(tmp_path: Path) -> None:
    case = _case(tmp_path, off=0.5, names=(HOSTILE_INPUT, HOSTILE_OUTPUT))
    write_reproduction(tmp_path / "bundle", replace(case, failures=[HOSTILE_OUTPUT]))
    assert {path.parent for path in tmp_path.rglob("*.npz")} == {tmp_path / "bundle"}
    with np.load(tmp_path / "bundle" / "inputs.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0"]
    assert json.loads((tmp_path / "bundle" / "case.json").read_text())["inputs"] == [HOSTILE_INPUT]
    readme = (tmp_path / "bundle" / "README.md").read_text()
    assert readme.count("\n# ") == 0
    assert "<b>" not in readme.replace(r"\<b", "")
    done = _run(tmp_path / "bundle")
    assert done.returncode == 1
    assert "outside the limits: MAE" in done.stdout


def test_the_readme_has_the_failures_and_the_node(tmp_path: Path) -> None:
    write_reproduction(tmp_path / "bundle", _case(tmp_path, off=0.5))
    readme = (tmp_path / "bundle" / "README.md").read_text()
    assert "MAE 0.1 is not below 1e-05" in readme
    assert r"node node\_\*add\* (Add), first seen in the value add" in readme
    assert "module head.0 (Linear)" in readme
    assert "MAE 0.001, largest difference 0.25, scale 1.5" in readme
    assert json.loads((tmp_path / "bundle" / "versions.json").read_text())["exported with"] == {"torch": "2.13.0"}


def test_a_large_model_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduction, "REPRODUCTION_MODEL_MAX_BYTES", 16)
    files = write_reproduction(tmp_path / "bundle", _case(tmp_path, off=0.5))
    assert not [path for path in files if "model.onnx" in path.name]
    assert "python reproduce.py path/to/model.onnx" in (tmp_path / "bundle" / "README.md").read_text()
    assert _run(tmp_path / "bundle").returncode == 2
    assert _run(tmp_path / "bundle", str(tmp_path / "artifact" / "model.onnx")).returncode == 1


def test_the_limit_of_a_large_output_is_relative_to_its_scale(tmp_path: Path) -> None:
    limits = ParityLimits(mae_max=0.01, sqnr_min_db=None)
    case = _case(tmp_path, off=0.5, limits=limits)
    write_reproduction(tmp_path / "bundle", case)
    assert _run(tmp_path / "bundle").returncode == 1
    wide = ColumnScale(axis=-1, spread=np.full(2, 100.0), scale=np.full(2, 100.0), rounding=np.zeros(2))
    write_reproduction(tmp_path / "bundle", replace(case, scales={"y": (wide,)}))
    assert _run(tmp_path / "bundle").returncode == 0


def test_equal_cases_give_equal_bytes_and_replace_an_older_bundle(tmp_path: Path) -> None:
    case = _case(tmp_path, off=0.5)
    first = {path.name: path.read_bytes() for path in write_reproduction(tmp_path / "bundle", case)}
    (tmp_path / "bundle" / "left over").touch()
    assert {path.name: path.read_bytes() for path in write_reproduction(tmp_path / "bundle", case)} == first


def test_the_readme_mentions_a_missing_node(tmp_path: Path) -> None:
    write_reproduction(tmp_path / "bundle", replace(_case(tmp_path, off=0.5), divergence=None))
    assert "no node was found" in (tmp_path / "bundle" / "README.md").read_text()


def test_special_values_in_the_same_places_are_equal(tmp_path: Path) -> None:
    case = _case(tmp_path, off=0.0)
    special: Arrays = {"x": np.array([[np.nan, np.inf], [-np.inf, 1.0]], np.float32)}
    outputs: Arrays = {"y": special["x"] + np.array([1, 2], np.float32)}
    sample = Sample(name="seed 1", inputs=special, batch_size=2)
    write_reproduction(tmp_path / "bundle", replace(case, sample=sample, reference=outputs, candidate=outputs))
    done = _run(tmp_path / "bundle")
    assert done.returncode == 0, done.stdout + done.stderr
