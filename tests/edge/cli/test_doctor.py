"""The export doctor with a model in a real MLflow server."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
import torch

from airflow_onnx.cli import doctor
from airflow_onnx.hooks.mlflow import MlflowHook

SPEC = [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}]


def make_model(width: int) -> torch.nn.Module:
    """Return the model of the weights; its tag names this function."""
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))


@pytest.fixture
def weights(hook: MlflowHook, tmp_path: Path) -> str:
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
    assert doctor.main([weights, "--allow-package", "tests"]) == 0
    printed = capsys.readouterr()
    assert "agree" in printed.out
    assert "Downloading" not in printed.err


def test_a_factory_of_a_tag_needs_consent(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([weights]) == 1
    assert "factory_not_allowed" in capsys.readouterr().out


@pytest.mark.parametrize("uri", ["runs:/{zeros}/model", "models:/m-{zeros}", "models:/no-such-model/1"])
def test_a_missing_model_is_an_error_with_the_next_action(
    hook: MlflowHook, capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    assert doctor.main([uri.format(zeros="0" * 32)]) == 1
    printed = capsys.readouterr().out
    assert "model_not_found" in printed
    assert "MLFLOW_TRACKING_URI" in printed
    assert "export'" not in printed
