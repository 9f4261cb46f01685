"""The command against a real MLflow server, in this process and in one without Airflow."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import mlflow
import pytest

from onnx_release.cli.main import main
from tests.core.models import TwoHeads, save
from tests.services import Services, running_services


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with running_services(tmp_path_factory.mktemp("services") / "state") as running:
        yield running


@pytest.fixture
def server(services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """The services, with MLflow's server in the environment."""
    before = dict(os.environ)
    # The default session keeps the keys of the first test that used it.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", services.context.mlflow_url)
    mlflow.set_tracking_uri(services.context.mlflow_url)
    mlflow.set_experiment("tests")
    yield services
    mlflow.set_tracking_uri(None)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def exported_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the command exported. Tests must not write to it."""
    base = tmp_path_factory.mktemp("exported")
    trained, out = save(TwoHeads().eval(), base / "trained"), base / "out"
    assert main(["export", str(trained), "-o", str(out), "--no-latency", "--quiet"]) == 0
    return out


@pytest.fixture
def released_folder(exported_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of that folder that a test may change."""
    return Path(shutil.copytree(exported_folder, tmp_path_factory.mktemp("copy") / "out"))
