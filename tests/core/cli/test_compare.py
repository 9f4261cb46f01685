"""Command `compare`: the same bytes, other weights, another contract."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from onnx_release.artifact.digests import describe_folder, folder_sha256
from onnx_release.cli.main import main
from onnx_release.limits import REPORT_FILE
from onnx_release.report.release_report import read_report, write_report
from tests.core.cli.command import document

QUICK = ("--limit", "measure_max_s=1", "--limit", "measure_min_s=0.2", "--batch-sizes", "1")


def change(folder: Path, **fields: object) -> None:
    """Write the record of the folder's present files, with other fields, as a release of them would."""
    report = read_report(folder / REPORT_FILE)
    assert report.artifact
    (folder / REPORT_FILE).unlink()
    files = tuple(file for file in describe_folder(folder) if not file.path.startswith("report"))
    artifact = report.artifact.replace(files=files, sha256=folder_sha256(files), **fields)
    write_report(folder, report.replace(artifact=artifact))


def test_the_same_bytes_agree_and_are_timed_in_the_same_rounds(
    exported_folder: Path, released_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(capsys, "compare", exported_folder, released_folder, "--same-outputs", *QUICK)
    assert (found["contract"], found["problem"]) == ([], "")
    assert found["outputs"]["passed"]
    (batch,) = found["latency"]
    assert batch["batch_size"] == 1
    assert batch["speedup_low"] <= batch["speedup"] <= batch["speedup_high"]
    assert found["before"] == found["after"] | {"name": found["before"]["name"]}
    assert main(["compare", str(exported_folder), str(released_folder), "--no-latency", "--not-slower"]) == 2


def test_other_weights_are_shown_and_refused_on_request(
    exported_folder: Path, released_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(str(released_folder / "model.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("bias"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1, tensor.name))
    onnx.save(model, str(released_folder / "model.onnx"))
    change(released_folder)
    arguments = ("compare", exported_folder, released_folder, "--no-latency")
    assert not document(capsys, *arguments)["outputs"]["passed"]
    document(capsys, *arguments, "--same-outputs", code=1)
    assert main([str(one) for one in (*arguments, "-q")]) == 0
    printed = capsys.readouterr().out
    assert "differs" in printed
    assert "A (out)" in printed


def test_another_contract_is_refused(
    exported_folder: Path, released_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = read_report(released_folder / REPORT_FILE).artifact
    assert artifact
    change(released_folder, outputs=(artifact.outputs[0].replace(name="\x1b[2Jplaces"), artifact.outputs[1]))
    found = document(capsys, "compare", exported_folder, released_folder, code=1)
    assert any("positions" in difference for difference in found["contract"])
    assert found["outputs"] is None
    assert main(["compare", str(exported_folder), str(released_folder)]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_changed_bytes_are_not_compared(
    exported_folder: Path, released_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (released_folder / "model.onnx").write_bytes(b"garbage")
    found = document(capsys, "compare", exported_folder, released_folder, code=1)
    assert found["error"]["code"] == "changed_files"
