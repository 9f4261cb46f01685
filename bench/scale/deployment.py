"""Deployment of docker-compose.yaml for a measurement: a separate project on free ports, removed at the end."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mlflow

from bench.figure import NotMeasured, progress
from bench.servers import CLIENT, EXPERIMENT, QUICK, environment
from bench.watch import airflow_runs
from bench.watch.airflow_runs import AirflowRuns
from deploy import clients, env
from deploy.compose import REPO, Project, docker, require_engine
from deploy.errors import DeployError
from stack import interrupts
from stack.context import Context
from stack.errors import StackError
from stack.ports import Ports, free_ports
from stack.release import WATCH_DAG_ID, Release

WORKER = "airflow-worker"
# As docker-compose.yaml has it.
IMAGE = "airflow-onnx-release:local"
# Older than the lookback: the trigger must not start these releases.
DAYS_AGO = 3
RANGE = timedelta(hours=1)
RELEASE_MAX_S = 180.0
POLL_S = 5.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """Running deployment, for clients on this machine."""

    project: Project
    context: Context

    @property
    def runs(self) -> AirflowRuns:
        """Airflow's records."""
        return AirflowRuns(self.context)

    def scale(self, workers: int) -> None:
        """Change the number of workers and wait until all are healthy; other services are unchanged."""
        self.project.scale(WORKER, workers)
        progress(f"{workers} workers")

    def end_in_the_past(self, training_runs: Sequence[str], number: int) -> None:
        """End training runs within an hour of the past, a different one for each `number`."""
        client = mlflow.MlflowClient(self.context.mlflow_url, self.context.mlflow_url)
        begin, _ = _range(number)
        for place, run in enumerate(training_runs):
            ended_at = begin + RANGE * (place + 0.5) / len(training_runs)
            client.set_terminated(run, end_time=int(1000 * ended_at.timestamp()))

    def release(
        self, training_runs: Sequence[str], number: int, read: Callable[[], None] = lambda: None
    ) -> list[dict[str, Any]]:
        """Release the runs of that hour at the same time with the watch; return their DAG runs.

        Args:
            training_runs: The runs.
            number: Number of their hour, see `end_in_the_past`.
            read: Called now and then until the end.

        Raises:
            StackError: A release failed.
        """
        begin, end = _range(number)
        conf = {"since": begin.isoformat(), "until": end.isoformat(), "at_once": len(training_runs)}
        body = {"dag_run_id": f"bench__{number}", "logical_date": None, "conf": conf}
        runs = self.runs
        runs.api.post(f"/dags/{WATCH_DAG_ID}/dagRuns", body)

        def over() -> bool:
            read()
            (watch,) = (row for row in runs.watches() if row["dag_run_id"] == body["dag_run_id"])
            if watch["state"] == "failed":
                raise StackError(f"{WATCH_DAG_ID} failed: see its DAG run {watch['dag_run_id']} in Airflow.")
            return airflow_runs.ended(runs.releases(training_runs)) == len(training_runs)

        limit_s = RELEASE_MAX_S * (1 + len(training_runs))
        airflow_runs.wait_for("not every release has ended", over, limit_s, poll_s=POLL_S)
        rows = runs.releases(training_runs)
        if failed := [row["conf"]["training_run_id"] for row in rows if row["state"] != "success"]:
            reason = Release(runs.api, failed[0]).failure()
            raise StackError(f"{len(failed)} of {len(training_runs)} releases failed. The first: {reason}")
        return rows


def _range(number: int) -> tuple[datetime, datetime]:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    begin = midnight - timedelta(days=DAYS_AGO) + RANGE * number
    return begin, begin + RANGE


@contextlib.contextmanager
def deployment(folder: Path) -> Iterator[Deployment]:
    """Start the file with one worker of one slot; its containers and volumes are removed at the end.

    Raises:
        NotMeasured: Docker Engine, Compose or an image is missing.
    """
    name, (airflow, mlflow_port, minio, console) = f"onnx-bench-{secrets.token_hex(4)}", free_ports(4)
    settings = {
        "AIRFLOW_PORT": airflow,
        "MLFLOW_PORT": mlflow_port,
        "MINIO_PORT": minio,
        "MINIO_CONSOLE_PORT": console,
        # As many slots as workers.
        "WORKER_CONCURRENCY": 1,
        "WORKER_GRACE": "10s",
        "WATCH_EXPERIMENTS": EXPERIMENT,
        "WATCH_ROUTES": json.dumps([{"experiment": "*", "params": QUICK}]),
    }
    env.complete(folder / ".env")
    extra = {key: str(value) for key, value in settings.items()}
    project = Project(env_file=folder / ".env", name=name, file=REPO / "docker-compose.yaml", extra=extra)
    _require(project)
    with _own_image(project), environment(**CLIENT):
        try:
            project.up("--scale", f"{WORKER}=1")
            ports = Ports(airflow=airflow, mlflow=mlflow_port, minio=minio)
            started = Deployment(project, clients.context(project, folder, ports))
            started.runs.await_dags()
            yield started
        finally:
            with interrupts.ignored():
                project.run("down", "--volumes", "--remove-orphans")


@contextlib.contextmanager
def _own_image(project: Project) -> Iterator[None]:
    """Give our image a separate name: a build during the measurement must not change later workers."""
    image = project.environment().get("AIRFLOW_ONNX_IMAGE") or IMAGE
    own = f"{project.name}:measured"
    subprocess.run([docker(), "tag", image, own], check=True)
    project.extra["AIRFLOW_ONNX_IMAGE"] = own
    try:
        yield
    finally:
        # This removes only the name: the image has another one.
        with interrupts.ignored():
            subprocess.run([docker(), "rmi", own], check=False, stdout=subprocess.DEVNULL)


def _require(project: Project) -> None:
    try:
        require_engine()
        config = project.output("config")
    except DeployError as error:
        raise NotMeasured(str(error)) from error
    if missing := [image for image in images(config) if not _is_here(image)]:
        raise NotMeasured(
            f"These images are not on this machine: {', '.join(missing)}. `docker compose pull --ignore-buildable` and "
            f"`docker compose build` get them."
        )


def images(config: str) -> list[str]:
    """Return the images of a `docker compose config`, each once."""
    return sorted(set(re.findall(r"^ +image: *[\"']?([^\s\"']+)", config, re.MULTILINE)))


def _is_here(image: str) -> bool:
    return subprocess.run([docker(), "image", "inspect", image], capture_output=True, check=False).returncode == 0
