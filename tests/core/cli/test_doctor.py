"""Command `doctor`, with models in a real MLflow server and in folders."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
import torch

from onnx_release.cli.main import main
from tests.core.cli.command import document, run_without_airflow
from tests.core.models import TwoHeads, save
from tests.services import Services

SPEC = [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}]


def make_model(width: int) -> torch.nn.Module:
    """Return the model of the weights; its tag names this function."""
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))


@pytest.fixture
def weights(server: Services, tmp_path: Path) -> str:
    """The URI of a file of weights, whose training run has the tags that a release needs."""
    file = tmp_path / "weights.pt"
    torch.save(make_model(5).state_dict(), file)
    with mlflow.start_run() as run:
        mlflow.log_artifact(str(file))
        mlflow.log_param("width", 5)
        mlflow.set_tag("onnx_release.factory", f"{__name__}:make_model")
        mlflow.set_tag("onnx_release.input_spec", json.dumps(SPEC))
    return f"runs:/{run.info.run_id}/weights.pt"


def test_the_tags_and_params_of_the_run_count(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["doctor", weights, "--allow-package", "tests"]) == 0
    printed = capsys.readouterr()
    assert "agree" in printed.out
    assert printed.out.endswith("No error was found. Latency was not measured.\n")
    assert "Downloading" not in printed.err


def test_a_factory_of_a_tag_needs_consent(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "doctor", weights, code=1)["findings"][0]["code"] == "factory_not_allowed"


@pytest.mark.parametrize(
    "uri", ["runs:/{zeros}/model", "models:/m-{zeros}", "models:/no-such-model/1", "no/such/file.pth", "runs:/../x"]
)
def test_a_missing_model_is_an_error_of_the_command_line(
    server: Services, capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    found = document(capsys, "doctor", uri.format(zeros="0" * 32), code=2)
    assert found["error"]["code"] == "model_not_found"


def test_every_fault_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = torch.zeros(1, 3, 8, 8)
    # Traced as at the end of a training script: in training mode, and with the one batch size of the example.
    program = torch.export.export(TwoHeads().train(), (example,))
    model = save(TwoHeads().eval(), tmp_path / "model")
    torch.export.save(program, model / "data" / "model.pt2")
    findings = document(capsys, "doctor", model, code=1)["findings"]
    errors = [finding for finding in findings if finding["severity"] == "error"]
    assert [finding["code"] for finding in errors] == ["train_mode", "frozen_batch"]
    assert all(finding["fix"] for finding in errors)


def test_a_pickle_needs_consent(trained_pickle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "doctor", trained_pickle, code=1)["findings"][0]["code"] == "pickle"
    assert main(["doctor", str(trained_pickle), "--allow-pickle"]) == 0


def test_the_command_needs_no_airflow(trained_pt2: Path) -> None:
    done = run_without_airflow("doctor", trained_pt2, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["findings"][0]["code"] == "exported"


def test_a_wrong_command_line_returns_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "model", "--factory-kwargs", "{"])
    assert caught.value.code == 2
    assert "--factory-kwargs" in capsys.readouterr().err
    assert main(["doctor", "model.pt", "--input-spec", "@/no/such/file"]) == 2
