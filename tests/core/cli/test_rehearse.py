"""Command `rehearse`: a table, a report, and exit codes; a version that does not load the model is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from onnx_release.cli.main import main
from onnx_release.serving.runtime_environment import installed_version
from tests.core.cli.command import document
from tests.core.rehearsal.runtimes import differing_python, python_of
from tests.core.serving.test_runtime_environment import REJECTING, index  # noqa: F401 - a fixture


def test_several_models_in_several_runtimes(
    released_folder: Path,
    index: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = tmp_path / "released"
    (both / "broken").mkdir(parents=True)
    (both / "broken" / "report.json").write_text("{}")
    shutil.copytree(released_folder, both / "net")
    python, report = str(differing_python(tmp_path)), tmp_path / "report"
    arguments = (
        "rehearse", both, "--no-latency", "-o", report, "--runtimes-folder", tmp_path / "runtimes",
        "--runtimes", installed_version(), python, REJECTING, "9.9.7",
    )  # fmt: skip
    found = document(capsys, *arguments, code=1)
    broken, net = found["models"]
    assert "no usable report" in broken["problem"]
    assert [one["verdict"] for one in net["runtimes"]] == ["bit-equal", "changes", "does not load", "not rehearsed"]
    assert net["runtimes"][1]["node"]["op_type"] == "Relu"
    assert "IR version: 10" in net["runtimes"][2]["problem"]
    assert "9.9.7" in net["runtimes"][3]["problem"]
    assert json.loads((report / "rehearsal.json").read_text())["models"] == found["models"]
    page, summary = ((report / name).read_text() for name in ("rehearsal.html", "rehearsal.md"))
    assert f"ONNX Runtime {REJECTING}: 1 of 2 models does not load" in page
    assert "Unsupported model IR version" in summary


def test_exit_codes_and_text(exported_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["rehearse", str(exported_folder), "--no-latency", "-q", "--runtimes"]
    assert main([*quick, str(installed_version())]) == 0
    assert "1 of 1 model is bit-equal" in " ".join(capsys.readouterr().out.split())
    assert main([*quick, str(python_of(tmp_path, "exit 1"))]) == 3
    assert main([*quick, str(tmp_path / "none" / "python")]) == 2
    assert main([*quick, "1.20; rm -rf /"]) == 2
    assert main(["rehearse", str(tmp_path), "--runtimes", "1.20.1"]) == 2
