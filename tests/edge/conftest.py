"""A real MLflow server and a real MinIO gateway, for tests of the edge that need no scheduler."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from airflow.sdk.execution_time import task_runner

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import s3
from onnx_release.training_runs import tags
from stack import setup
from tests.edge.airflow_stand_in import Supervisor
from tests.edge.releasing import Release, new_release, trained_run
from tests.edge.watch.watching import Lab
from tests.services import Services, running_services

Led = Callable[[str, str], None]


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with running_services(tmp_path_factory.mktemp("services") / "state") as running:
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
        patch.setenv("AIRFLOW__ONNX_RELEASE__RELEASE_BUCKETS", "heimdall-models")
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


@pytest.fixture
def led(monkeypatch: pytest.MonkeyPatch) -> Led:
    """Lead a connection to another address."""

    def lead(connection: str, address: str) -> None:
        name = f"AIRFLOW_CONN_{connection.upper()}"
        found = json.loads(os.environ[name])
        host, _, port = address.removeprefix("http://").partition(":")
        found |= {"host": f"http://{host}" if found["conn_type"] == "mlflow" else host, "port": int(port)}
        if "extra" in found:
            found["extra"] = json.dumps(json.loads(found["extra"]) | {"endpoint_url": address})
        monkeypatch.setenv(name, json.dumps(found))

    return lead
