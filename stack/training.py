"""Training run of the demo: made once, then used again."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import requests
from rich.console import Console

from stack.children import child
from stack.context import Context
from stack.environment import clean_environment
from stack.errors import StackError
from stack.http import TIMEOUT_S, session
from stack.layout import REPO
from stack.private import write_private

EXPERIMENT = "demo"
MODEL_NAME = "heimdall-localization-onnx"
ARGUMENTS = (
    "--experiment", EXPERIMENT, "--model-name", MODEL_NAME, "--size", "tiny", "--seconds", "60", "--seed", "7",
)  # fmt: skip
FILE = "demo.json"


def trained_run(context: Context, console: Console) -> str:
    """Return the id of the demo's finished training run. Train for about a minute when there is none."""
    path = context.layout.home / FILE
    with contextlib.suppress(OSError, ValueError, KeyError):
        run_id = str(json.loads(path.read_text())["training_run_id"])
        if _is_finished(context, run_id):
            console.print(f"Training run {run_id} exists already.")
            return run_id
    run_id = _train(context, console)
    write_private(path, json.dumps({"training_run_id": run_id}) + "\n")
    return run_id


def version_exists(context: Context, name: str, version: int) -> bool:
    """Return True when the registry has the model version."""
    return _mlflow(context, "model-versions/get", name=name, version=str(version)).ok


def _is_finished(context: Context, run_id: str) -> bool:
    response = _mlflow(context, "runs/get", run_id=run_id)
    if not response.ok:
        return False
    info = response.json()["run"]["info"]
    return bool(info["status"] == "FINISHED" and info["lifecycle_stage"] == "active")


def _mlflow(context: Context, call: str, **params: str) -> requests.Response:
    try:
        return session().get(f"{context.mlflow_url}/api/2.0/mlflow/{call}", params=params, timeout=TIMEOUT_S)
    except requests.RequestException as error:
        raise StackError(f"MLflow at {context.mlflow_url} does not answer: {error}") from error


def _train(context: Context, console: Console) -> str:
    argv = [sys.executable, "-m", "examples.train", "--tracking-uri", context.mlflow_url, *ARGUMENTS]
    console.print("Training the reference model (about a minute):")
    env = clean_environment(PYTHONPATH=str(REPO / "include"))
    # In this process's session: Ctrl-C reaches the training too, which then ends its MLflow run.
    with child(argv, env, context.layout.home) as process:
        lines = _relay(process, console)
        code = process.wait()
    name, _, run_id = lines[-1].partition("=") if lines else ("", "", "")
    if code != 0 or name != "run_id":
        last = lines[-1] if lines else "no output"
        raise StackError(f"The training ended with status {code}: {last}")
    return run_id


def _relay(process: subprocess.Popen[str], console: Console) -> list[str]:
    """Print and return the output lines of the training."""
    lines = []
    for line in process.stdout or ():
        if text := line.rstrip():
            lines.append(text)
            console.print(f"  {text}", markup=False)
    return lines
