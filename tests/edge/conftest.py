"""A real MLflow server and a real MinIO gateway, for tests of the edge that need no scheduler."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from airflow.sdk.execution_time import task_runner

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import s3
from airflow_onnx.tracking import tags
from stack import minio, mlflow_server, processes, setup
from stack.context import Context
from stack.credentials import Credentials
from stack.layout import Layout
from stack.ports import Ports
from tests.edge.airflow_stand_in import Supervisor
from tests.edge.releasing import Release, new_release, trained_run
from tests.edge.watch.watching import Lab
from tests.guard import guarded


@dataclass(frozen=True)
class Services:
    """The running services, and the Airflow connections that lead to them."""

    context: Context

    def stop(self, name: str) -> None:
        """Stop one of them, as an outage does."""
        processes.stop(self.context.layout, [name])

    def start(self, name: str, **variables: str) -> None:
        """Start one of them, with more environment variables, and wait until it answers."""
        service = {minio.NAME: minio, mlflow_server.NAME: mlflow_server}[name]
        database = mlflow_server.sqlite_store(self.context)
        command = minio.command(self.context) if service is minio else mlflow_server.command(self.context, database)
        processes.start(self.context.layout, dataclasses.replace(command, env=command.env | variables))
        processes.await_ready(self.context.layout, name, partial(service.is_healthy, self.context))

    def serve(self, uri: str) -> Any:
        """Load a version as a consumer does, whose environment has the keys to the store."""
        keys = self.context.credentials
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_S3_ENDPOINT_URL", self.context.minio_url)
            patch.setenv("AWS_ACCESS_KEY_ID", keys.minio_access_key)
            patch.setenv("AWS_SECRET_ACCESS_KEY", keys.minio_secret_key)
            return mlflow.pyfunc.load_model(uri)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    layout = Layout(tmp_path_factory.mktemp("services") / "state")
    layout.create()
    running = Services(Context(layout, Ports.free(), Credentials.generate()))
    minio.prepare(running.context)
    with guarded(layout.home):
        running.start(minio.NAME)
        minio.set_up(running.context)
        running.start(mlflow_server.NAME)
        yield running


@pytest.fixture(scope="package")
def connections(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Airflow's connections, in the form that needs no metadata database.

    MLflow's client writes its server into the environment of its process; afterwards all is as it was.
    """
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in setup.connection_environment(services.context).items():
            patch.setenv(name, value)
        patch.setenv("AIRFLOW__ONNX_RELEASE__CACHE_FOLDER", str(tmp_path_factory.mktemp("cache")))
        yield
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def administrator(services: Services, connections: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that may see every bucket. MinIO denies the usual account a bucket that does not exist."""
    keys = services.context.credentials
    stored = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"])
    stored |= {"login": keys.minio_access_key, "password": keys.minio_secret_key}
    monkeypatch.setenv("AIRFLOW_CONN_MINIO_DEFAULT", json.dumps(stored))


@pytest.fixture
def hook(connections: None) -> MlflowHook:
    """The hook of `mlflow_default`, with MLflow's fluent API pointed at the same server."""
    made = MlflowHook("mlflow_default")
    made.activate()
    mlflow.set_experiment("tests")
    return made


@pytest.fixture
def folder(connections: None) -> s3.S3Folder:
    """An empty folder of its own in the store."""
    return s3.folder_at("minio_default", f"s3://heimdall-models/test/{uuid.uuid4().hex}")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    made = tmp_path / "local"
    made.mkdir()
    return made


@pytest.fixture(scope="package")
def staging(connections: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stage below a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__ONNX_RELEASE__STAGING_URI", tmp_path_factory.mktemp("staging").as_uri())
        yield


@pytest.fixture(scope="package")
def judged(staging: None) -> Release:
    """A trained run, released as far as the verdict; the tests go on from copies of it, each under its own name."""
    MlflowHook("mlflow_default").activate()
    mlflow.set_experiment("tests")
    done = Release(trained_run(), "template")
    done.to("parity_latency")
    return done


@pytest.fixture
def run_id(judged: Release) -> str:
    return judged.training_run_id


@pytest.fixture
def release(hook: MlflowHook, run_id: str) -> Release:
    """A release that has not begun, of a run whose tags tell of no other one."""
    for name in hook.client.get_run(run_id).data.tags:
        if name.startswith(f"{tags.ROOT}."):
            hook.client.delete_tag(run_id, name)
    return new_release(run_id)


@pytest.fixture(scope="package")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a small pt2 model, as MLflow writes them."""
    folder = tmp_path_factory.mktemp("model") / "model"
    mlflow.pytorch.save_model(torch.nn.Linear(3, 2), folder, serialization_format="pickle", pip_requirements=["torch"])
    (folder / "data" / "model.pth").rename(folder / "data" / "model.pt2")
    return folder


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """A stand-in for Airflow's supervisor."""
    made = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", made, raising=False)
    return made


@pytest.fixture
def lab(hook: MlflowHook, model_folder: Path, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://airflow.test")
    return Lab(hook, supervisor, hook.client.create_experiment(f"watch-{uuid.uuid4().hex[:8]}"), model_folder)
