"""The command against a real MLflow server, in this process and in one without Airflow."""

from __future__ import annotations

import os
from collections.abc import Iterator

import mlflow
import pytest

from tests.services import Services, running_services


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with running_services(tmp_path_factory.mktemp("services") / "state") as running:
        yield running


@pytest.fixture
def server(services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """The services, with MLflow's server in the environment."""
    before = dict(os.environ)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", services.context.mlflow_url)
    mlflow.set_tracking_uri(services.context.mlflow_url)
    mlflow.set_experiment("tests")
    yield services
    mlflow.set_tracking_uri(None)
    os.environ.clear()
    os.environ.update(before)
