"""A deployment of docker-compose.yaml for tests: a project, secrets and ports of its own, and its clients."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deploy import clients
from deploy.compose import Container, Project, docker
from deploy.env import read
from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.minio import s3_client
from stack.ports import Ports
from stack.release import DAG_ID
from stack.training import MODEL_NAME

POLL_S = 0.5


def wait_for(what: str, probe: Callable[[], Any], timeout_s: float) -> Any:
    """Return what `probe` finds, once it finds something."""
    deadline = time.monotonic() + timeout_s
    while not (found := probe()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:.0f} s"
        time.sleep(POLL_S)
    return found


@dataclass(frozen=True)
class Deployment:
    """What runs: its project, its folder on this machine and its ports."""

    project: Project
    home: Path
    ports: Ports

    @property
    def secrets(self) -> dict[str, str]:
        return read(self.project.env_file)

    def context(self, account: str = clients.RELEASE_ACCOUNT) -> Context:
        """The deployment as clients see it, with one of MinIO's accounts."""
        return clients.context(self.project, self.home, self.ports, account)

    @property
    def api(self) -> AirflowApi:
        return AirflowApi(self.context())

    @property
    def s3(self) -> Any:
        return s3_client(self.context())

    def keys(self, bucket: str) -> list[str]:
        return [item["Key"] for item in self.s3.list_objects_v2(Bucket=bucket).get("Contents", [])]

    def workers(self) -> dict[str, Container]:
        """The running workers by their host's name, which is what a task's record says."""
        found = self.project.containers("airflow-worker")
        return {one.id[:12]: one for one in found if one.facts["State"]["Running"]}

    def train(self, experiment: str, seed: int) -> str:
        """Train the smallest reference model for a moment, in the trainer's container; return the run's id."""
        arguments = ["--experiment", experiment, "--model-name", MODEL_NAME, "--size", "nano", "--seconds", "3"]
        arguments += ["--seed", str(seed)]
        lines = self.project.output("run", "--rm", "-T", "trainer", *arguments).strip().splitlines()
        return lines[-1].removeprefix("run_id=")


@dataclass(frozen=True)
class DagRun:
    """A release in Airflow's records."""

    api: AirflowApi
    dag_run_id: str

    @property
    def path(self) -> str:
        return f"/dags/{DAG_ID}/dagRuns/{quote(self.dag_run_id, safe='')}"

    def trigger(self, **conf: Any) -> DagRun:
        self.api.post(f"/dags/{DAG_ID}/dagRuns", {"dag_run_id": self.dag_run_id, "logical_date": None, "conf": conf})
        return self

    def exists(self) -> bool:
        return bool(self.api.call("GET", self.path).ok)

    def tasks(self) -> dict[str, dict[str, Any]]:
        found = self.api.get(f"{self.path}/taskInstances")["task_instances"]
        return {task["task_id"]: task for task in found}

    def tries(self, task_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api.get(f"{self.path}/taskInstances/{task_id}/tries")["task_instances"]
        return sorted(found, key=lambda each: int(each["try_number"]))

    def hosts(self) -> set[str]:
        """The hosts that its finished tasks ran on."""
        return {task["hostname"] for task in self.tasks().values() if task["hostname"]}

    def running_on(self, task_id: str) -> str | None:
        """The host that the task runs on now."""
        task = self.tasks().get(task_id, {})
        return task["hostname"] if task.get("state") == "running" else None

    def log(self, task_id: str, attempt: int = 1) -> str:
        path = f"{self.path}/taskInstances/{task_id}/logs/{attempt}"
        return json.dumps(self.api.get(path, full_content="true")["content"])

    def succeed(self, timeout_s: float) -> DagRun:
        """Wait for the end, which must be a success."""
        ended = ("success", "failed")
        state = wait_for(
            f"the end of {self.dag_run_id}",
            lambda: (state := self.api.get(self.path)["state"]) in ended and state,
            timeout_s,
        )
        assert state == "success", {name: task["state"] for name, task in self.tasks().items()}
        return self

    def xcom(self, task_id: str) -> Any:
        return self.api.xcom(DAG_ID, self.dag_run_id, task_id)


def inside(container: Container, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a container."""
    return subprocess.run([docker(), "exec", container.id, *command], capture_output=True, text=True, check=False)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
