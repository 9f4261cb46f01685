"""docs/command-line.md: the first command of each section prints the page's output, and every field is described."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

from onnx_release.cli.main import main
from onnx_release.cli.outcome import ExitCode
from onnx_release.training_runs import tags
from tests.core.cli.command import ROOT
from tests.core.models import TwoHeads, save
from tests.services import Services

PAGE = (ROOT / "docs" / "command-line.md").read_text()
SECTIONS = {section.split("\n", 1)[0]: section for section in PAGE.split("\n## ")[1:]}
COMMANDS = ("doctor", "export", "verify", "compare", "plan")


def log_churn(folder: Path, seed: int) -> Path:
    """Save a small classifier as a training script does."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    batch = torch.rand(5, 4)
    signature = mlflow.models.infer_signature(batch.numpy(), model(batch).detach().numpy())
    return save(model, folder, signature=signature, input_example=batch.numpy())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the models of the page."""
    base = tmp_path_factory.mktemp("page")
    log_churn(base / "model", 0)
    newer = log_churn(base / "newer-model", 1)
    assert main(["export", str(newer), "-o", str(base / "newer"), "--no-latency", "--quiet"]) == 0
    faulty = save(TwoHeads().eval(), base / "faulty")
    torch.export.save(
        torch.export.export(TwoHeads().train(), (torch.zeros(1, 3, 8, 8),)), faulty / "data" / "model.pt2"
    )
    return base


@pytest.fixture
def churn(server: Services) -> None:
    """The experiment of the page."""
    mlflow.set_experiment("churn")
    for name in ("bold-hawk", "calm-owl"):
        with mlflow.start_run(run_name=name):
            mlflow.log_text("weights", "best.pt2")
            if name == "calm-owl":
                mlflow.set_tag(tags.INPUT_SPEC, '[{"name": "x", "dtype": "float32", "shape": ["batch", 3]}]')


def example(command: str) -> tuple[list[str], str]:
    """Return the first command of a section, and its output."""
    section = SECTIONS[command]
    found = re.search(r"```sh\nonnx-release (.*?)\n.*?```text\n(.*?)```", section, re.DOTALL)
    assert found
    return shlex.split(found[1]), found[2]


def masked(text: str) -> list[str]:
    """Return the lines without the values of one machine."""
    values = re.sub(r"[0-9a-f]{64}", "SHA", text)
    return [" ".join(line.split()) for line in re.sub(r"\d[\d.]*(e-?\d+)?", "#", values).splitlines()]


@pytest.mark.usefixtures("churn")
def test_the_examples_are_the_output_of_the_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "110")
    found = {}
    for command in COMMANDS:
        arguments, _ = example(command)
        capsys.readouterr()
        main([*arguments, "--quiet"])
        found[command] = capsys.readouterr().out
    monkeypatch.delenv("COLUMNS")
    assert {command: masked(text) for command, text in found.items()} == {
        command: masked(example(command)[1]) for command in COMMANDS
    }
    for command in COMMANDS:
        overwrite = ["--overwrite"] if command == "export" else []
        main([*example(command)[0], *overwrite, "--quiet", "--json"])
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        row = next(line for line in SECTIONS["JSON"].splitlines() if line.startswith(f"| `{command}`"))
        assert [field for field in document if f"`{field}`" not in row + SECTIONS["JSON"].split("|")[0]] == []


def test_every_exit_code_is_on_the_page() -> None:
    rows = re.findall(r"^\| (\d+) \|", SECTIONS["Exit codes"], re.MULTILINE)
    assert rows == [str(int(code)) for code in ExitCode]


def test_the_reference_outputs_are_read_as_the_page_about_serving_shows(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "serving.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "reference.npz" in block]
    monkeypatch.chdir(folder)
    exec(compile(code.replace("churn/", "newer/"), "serving.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["example", "example"]
    assert all(float(line.rpartition(" ")[2]) < 1e-5 for line in lines)
