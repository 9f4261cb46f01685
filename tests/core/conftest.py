"""Fixtures: small models in MLflow folders, and their artifacts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from onnx_release.export.export_model import ExportStepOptions, export_trained
from onnx_release.records import OnnxArtifact
from tests.core.models import TwoHeads, save


@dataclass(frozen=True)
class Exported:
    """An artifact folder and its record."""

    folder: Path
    artifact: OnnxArtifact


@pytest.fixture(scope="session")
def trained_pt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a logged model. Tests must not write to it, nor to the two below."""
    return save(TwoHeads().eval(), tmp_path_factory.mktemp("mlflow") / "pt2")


@pytest.fixture(scope="session")
def trained_pickle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # In training mode, as at the end of a training script. The loader has to switch to eval mode.
    return save(TwoHeads().train(), tmp_path_factory.mktemp("mlflow") / "pickle", serialization_format="pickle")


@pytest.fixture(scope="session")
def released(trained_pt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The artifact of the pt2 model. Tests must not write to it."""
    folder = tmp_path_factory.mktemp("exported") / "artifact"
    return Exported(folder, export_trained(trained_pt2, folder, ExportStepOptions(device="cpu")))


@pytest.fixture
def exported(released: Exported, tmp_path: Path) -> Exported:
    """A copy of the artifact that a test may damage."""
    return Exported(Path(shutil.copytree(released.folder, tmp_path / "artifact")), released.artifact)


@pytest.fixture
def log_and_export(tmp_path: Path) -> Callable[..., Exported]:
    """Return a function that saves a model, as a pickle by default (no trace), and exports it."""

    def run(model: torch.nn.Module, opset: int | None = None, **logged: object) -> Exported:
        trained = save(model, tmp_path / "trained", **{"serialization_format": "pickle"} | logged)
        options = ExportStepOptions(opset=opset, device="cpu", allow_pickle=True)
        return Exported(tmp_path / "out", export_trained(trained, tmp_path / "out", options))

    return run
