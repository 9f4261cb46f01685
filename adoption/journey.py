"""Steps from a stock Airflow to two released models, as the documentation lists them."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from adoption.packages import Changes, compare
from adoption.services import ACCOUNT, Deployment
from adoption.steps import Stopwatch
from stack import children
from stack.airflow_api import POLL_S
from stack.environment import clean_environment
from stack.errors import StackError
from stack.layout import REPO
from stack.minio import REGION
from stack.ports import HOST
from stack.release import ENDED, last_error

HERE = Path(__file__).parent
FIRST_DAG = HERE / "release_first.py"
SECOND_DAG = REPO / "docs" / "examples" / "second_model.py"
DAG_IDS = ("release_first", "release_churn", "watch_churn")
ALIAS = "candidate"
PARSE_TIMEOUT_S = 180.0
RELEASE_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the deployment: its experiment, its release DAG, its name in the registry and its input."""

    experiment: str
    dag_id: str
    name: str
    features: int


FIRST = Model("first", "release_first", "first-onnx", 8)
SECOND = Model("churn-nightly", "release_churn", "churn-onnx", 12)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result: the changed packages, and the counted seconds at the first and at the second alias."""

    changes: Changes
    first_s: float
    second_s: float


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this repository and return its path."""
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(REPO)]
    status, output = children.run(argv, clean_environment(), folder)
    if status != 0:
        raise StackError(f"The wheel cannot be built:\n{output[-2000:]}")
    return next(folder.glob("airflow_onnx_release-*.whl"))


def adopt(deployment: Deployment, wheel: Path, watch: Stopwatch) -> Outcome:
    """Install the wheel into the running deployment, and release two models.

    :raises StackError: for the first step that fails, with its output.
    """
    with watch.step("train the first model", counted=False):
        run_id = _train(deployment, FIRST)
    before = deployment.environment.packages()
    with watch.step("pip install"):
        _install(deployment, wheel)
    with watch.step("two DAG files, two connections"):
        for file in (FIRST_DAG, SECOND_DAG):
            shutil.copy(file, deployment.home / "dags")
        _add_connections(deployment)
    with watch.step("restart of Airflow's four services"):
        deployment.stop_airflow()
        deployment.start_airflow()
        deployment.api.await_dags(DAG_IDS, PARSE_TIMEOUT_S)
    environment = deployment.environment
    environment.run(["python", "-m", "pip", "check"], environment.folder)
    changes = compare(before, environment.packages())
    with watch.step("start of the second model's watch"):
        deployment.airflow("dags", "unpause", "watch_churn")
    with watch.step("airflow onnx-release check"):
        deployment.airflow("onnx-release", "check")
    with watch.step("first release: trigger to alias"):
        deployment.airflow("dags", "trigger", FIRST.dag_id, "--conf", json.dumps({"training_run_id": run_id}))
        _await_release(deployment, FIRST)
    with watch.step("first model loads by its alias"):
        _load(deployment, FIRST)
    first_s = watch.counted_s()
    with watch.step("train the second model", counted=False):
        _train(deployment, SECOND)
    with watch.step("second release: end of training to alias"):
        _await_release(deployment, SECOND)
    with watch.step("second model loads by its alias"):
        _load(deployment, SECOND)
    return Outcome(changes, first_s, watch.counted_s())


def _install(deployment: Deployment, wheel: Path) -> None:
    """Install the wheel. Airflow's pinned version keeps pip from moving it."""
    environment = deployment.environment
    version = environment.run(["airflow", "version"], environment.folder, AIRFLOW_HOME=str(deployment.home))
    requirements = [f"apache-airflow=={version.splitlines()[-1]}", f"airflow-onnx-release[worker] @ {wheel.as_uri()}"]
    environment.run(["python", "-m", "pip", "install", *requirements], environment.folder)


def _add_connections(deployment: Deployment) -> None:
    """Add both connections by the commands of docs/connections.md."""
    context, address = deployment.context, ("--conn-host", f"http://{HOST}", "--conn-port")
    for name, kind, port, *account in (
        ("mlflow_default", "mlflow", context.ports.mlflow),
        ("minio_default", "s3store", context.ports.minio,
         "--conn-login", ACCOUNT, "--conn-password", context.credentials.release_secret_key),
    ):  # fmt: skip
        deployment.airflow("connections", "add", name, "--conn-type", kind, *address, str(port), *map(str, account))


def _train(deployment: Deployment, model: Model) -> str:
    """Train in the environment of the deployment and return the id of the training run."""
    return _client(deployment, "train.py", model.experiment, str(model.features))


def _load(deployment: Deployment, model: Model) -> str:
    """Load the model as a client does, and return its version."""
    return _client(deployment, "load.py", model.name, ALIAS, str(model.features))


def _client(deployment: Deployment, script: str, *arguments: str) -> str:
    """Run a script with the variables of a client and return the last line of its output."""
    context = deployment.context
    variables = {
        "MLFLOW_TRACKING_URI": context.mlflow_url,
        "MLFLOW_S3_ENDPOINT_URL": context.minio_url,
        "AWS_ACCESS_KEY_ID": ACCOUNT,
        "AWS_SECRET_ACCESS_KEY": context.credentials.release_secret_key,
        "AWS_DEFAULT_REGION": REGION,
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    argv = ["python", str(HERE / script), *arguments]
    return deployment.environment.run(argv, context.layout.home, **variables).splitlines()[-1]


def _await_release(deployment: Deployment, model: Model) -> None:
    """Wait for the end of the model's release. Raise `StackError` with the reason of a failure."""
    deadline = time.monotonic() + RELEASE_TIMEOUT_S
    while True:
        runs = deployment.api.get(f"/dags/{model.dag_id}/dagRuns")["dag_runs"]
        state = runs[0]["state"] if runs else "not started"
        if state == "success":
            return
        if state in ENDED:
            raise StackError(f"The release of {model.name} failed. {_failure(deployment, runs[0])}")
        if time.monotonic() > deadline:
            raise StackError(f"The release of {model.name} is {state} after {RELEASE_TIMEOUT_S:.0f} s.")
        time.sleep(POLL_S)


def _failure(deployment: Deployment, run: dict[str, Any]) -> str:
    path = f"/dags/{run['dag_id']}/dagRuns/{quote(run['dag_run_id'], safe='')}/taskInstances"
    tasks = deployment.api.get(path)["task_instances"]
    for task in (task for task in tasks if task["state"] == "failed"):
        content = deployment.api.get(f"{path}/{task['task_id']}/logs/{task['try_number']}", full_content="true")
        return f"Task {task['task_id']}: {last_error(content['content'])}"
    return "No task failed."
