"""The MLflow hook in a process that sets no default server, against a real MLflow server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

from airflow_onnx.hooks.mlflow import MlflowHook

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
