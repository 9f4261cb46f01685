"""Planted secrets: a release with failures leaves none in logs, XCom, MLflow, the store, folders and the report."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mlflow
import pytest

from airflow_onnx.deployment import settings
from airflow_onnx.hooks.mlflow import MlflowHook
from soak.canaries import Canaries
from stack.minio import RELEASE_BUCKET, s3_client
from tests.edge.releasing import Release, new_release
from tests.refusals import failed
from tests.services import Services

VARIABLES = {"FERNET": "AIRFLOW__CORE__FERNET_KEY", "variable": "AIRFLOW_VAR_CANARY", "token": "MLFLOW_TRACKING_TOKEN"}


def test_a_release_with_failures_leaves_no_secret(
    services: Services, hook: MlflowHook, judged: Release, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("DEBUG")
    stored = os.environ["AIRFLOW_CONN_MINIO_DEFAULT"]
    secrets = {name: f"canary-{name}-0815" for name in (*VARIABLES, "wrong key")}
    for name, variable in VARIABLES.items():
        monkeypatch.setenv(variable, secrets[name])
    secrets["key of the store"] = json.loads(stored)["password"]
    release = new_release(judged.training_run_id)
    release.run("wait")
    monkeypatch.setenv(
        "AIRFLOW_CONN_MINIO_DEFAULT", json.dumps(json.loads(stored) | {"password": secrets["wrong key"]})
    )
    with failed("access_denied"):
        release.run("prepare")
    release.clean()
    monkeypatch.setenv("AIRFLOW_CONN_MINIO_DEFAULT", stored)
    release.after(judged, "parity_latency")
    release.run("upload", "register", "promote")
    canaries = Canaries(secrets)
    monkeypatch.undo()
    artifacts = Path(mlflow.artifacts.download_artifacts(run_id=release.training_run_id, dst_path=str(tmp_path)))
    found = [
        *canaries.in_text("log", caplog.text),
        *canaries.in_text("XCom", repr([release.returned, release.pushed, release.outcomes, release.begins])),
        *canaries.in_mlflow(hook.client),
        *canaries.in_objects(s3_client(services.context), RELEASE_BUCKET, f"{release.model_name}/"),
        *canaries.in_folders(artifacts, settings.cache_folder()),
    ]
    assert found == []
