"""The MLflow hook in a process that sets no default server, against a real MLflow server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from airflow_onnx.hooks.mlflow import MlflowHook
from tests.refusals import refused

SCRIPT = """
import json, sys
from pathlib import Path
from airflow_onnx.hooks.mlflow import MlflowHook

run_id, file, name = sys.argv[1:]
hook = MlflowHook("mlflow_default")
hook.log_files(run_id, "folder", [Path(file)])
hook.log_metrics(run_id, {"a": 1.0})
hook.set_tags(run_id, {"t": "x"})
hook.client.create_registered_model(name)
hook.client.create_model_version(name, "s3://heimdall-models/x", run_id=run_id)
print(json.dumps([item.path for item in hook.client.list_artifacts(run_id, "folder")]))
"""


def test_the_client_needs_no_default_server(hook: MlflowHook, tmp_path: Path) -> None:
    run_id, name = hook.client.create_run("0").info.run_id, f"m-{uuid.uuid4().hex[:8]}"
    file = tmp_path / "file.txt"
    file.write_text("text")
    folders = os.pathsep.join(str(Path(__file__).parents[3] / folder) for folder in ("include", "plugins"))
    defaults = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_AUTH")
    env = {key: value for key, value in os.environ.items() if key not in defaults} | {"PYTHONPATH": folders}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, run_id, str(file), name],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ["folder/file.txt"]
    data = hook.client.get_run(run_id).data
    assert (data.metrics, data.tags["t"]) == ({"a": 1.0}, "x")
    assert hook.client.get_model_version(name, "1").run_id == run_id


@pytest.mark.parametrize("host", ["http://host:port", "http://host:99999", "http://[::1", "ftp://host", ""])
def test_a_server_address_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_TRIAL", json.dumps({"conn_type": "mlflow", "host": host}))
    with refused("mlflow_address", "'trial'", host):
        _ = MlflowHook("trial").server


@pytest.mark.parametrize(
    "location",
    ["s3://heimdall-models/elsewhere", "file:///etc", "mlflow-artifacts://other-host:1/x", "http://127.0.0.1:1/x"],
)
def test_a_store_that_mlflow_does_not_serve_is_never_read_or_written(
    hook: MlflowHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-worker")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-worker")
    name = f"elsewhere-{uuid.uuid4().hex[:8]}"
    try:
        experiment = hook.client.create_experiment(name, artifact_location=location)
    except MlflowException:
        pytest.skip("the server refuses this location")
    run_id = hook.client.create_run(experiment).info.run_id
    uris = [f"runs:/{run_id}/model", location]
    for uri in uris:
        with refused("artifacts_not_served", uri, location):
            hook.download(uri, tmp_path / "download")
    with refused("artifacts_not_served", location):
        hook.log_files(run_id, "folder", [])
    if location.startswith("s3:"):
        model = hook.client.create_logged_model(experiment)
        with refused("artifacts_not_served", location):
            list(hook.model_files(f"models:/{model.model_id}"))
    assert not (tmp_path / "download").exists()


def test_a_version_from_a_store_that_mlflow_does_not_serve_is_never_read(hook: MlflowHook, tmp_path: Path) -> None:
    name = f"m-{uuid.uuid4().hex[:8]}"
    hook.client.create_registered_model(name)
    hook.client.create_model_version(name, "s3://heimdall-models/x")
    with refused("artifacts_not_served", f"models:/{name}/1", "s3://heimdall-models/x"):
        hook.download(f"models:/{name}/1", tmp_path / "download")
