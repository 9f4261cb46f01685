"""The local stack with a fault proxy before MinIO and another before MLflow."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from airflow_onnx.defaults import EXPORT_POOL, MEASURE_POOL
from soak.airflow_state import AirflowState, read_airflow
from soak.fault_proxy import Change, Plan, proxy
from soak.folders import Folders
from soak.statements import Places
from stack import processes, setup
from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.environment import clean_environment
from stack.errors import StackError
from stack.layout import REPO, Layout
from stack.lifecycle import down, up
from stack.minio import RELEASE_BUCKET, s3_client
from stack.ports import Ports
from stack.release import DAG_ID, WATCH_DAG_ID, Release

# For a process of the soak.
IMPORTS = {"PYTHONPATH": os.pathsep.join(str(REPO / folder) for folder in (".", "include", "plugins"))}
POOLS = (EXPORT_POOL, MEASURE_POOL)
# Other programs may need the processors while the services start.
_START_TIMEOUT_S = 600.0
EXPERIMENT = "soak"
# A soak starts its releases itself.
_WATCHED = "nothing is watched"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """A running stack. Threads may share it.

    :param minio: the faults between the workers and MinIO; likewise `mlflow`.
    :param disk: the folder with the work folders and the temporary files of the tasks.
    :param spare: training runs with a small model that no scenario has taken yet.
    :param planted: secrets by name that nothing may write anywhere.
    :param children: the ids of the processes of tasks whose environment was searched for secrets.
    :param leaks: the secrets that were found there.
    """

    context: Context
    minio: Plan = field(default_factory=Plan)
    mlflow: Plan = field(default_factory=Plan)
    disk: Path
    spare: list[str] = field(default_factory=list)
    planted: dict[str, str] = field(default_factory=dict)
    children: set[int] = field(default_factory=set)
    leaks: set[str] = field(default_factory=set)

    @property
    def api(self) -> AirflowApi:
        """A new client of Airflow's API: its session belongs to one thread."""
        return AirflowApi(self.context)

    @property
    def client(self) -> Any:
        """A client of MLflow that goes around the proxy."""
        import mlflow

        return mlflow.MlflowClient(self.context.mlflow_url, self.context.mlflow_url)

    @property
    def store(self) -> Any:
        """A client of MinIO with all rights that goes around the proxy."""
        return s3_client(self.context)

    def places(self, folders: Folders | None = None) -> Places:
        """Return the places that the statements read. Airflow is read here."""
        return Places(
            store=self.store,
            bucket=RELEASE_BUCKET,
            airflow=self.airflow(),
            mlflow=self.client,
            folders=folders or self.folders,
        )

    def airflow(self) -> AirflowState:
        """Return the DAG runs of releases and the pools."""
        return read_airflow(self.api, (DAG_ID,), POOLS)

    @property
    def folders(self) -> Folders:
        """The folders of the worker."""
        return Folders(staging=self.disk / "staging", scratch=self.disk / "tmp", lock=self.disk / "measure.lock")

    def take(self) -> str:
        """Return a spare training run, or a new one. A process that trains one model imports for seconds."""
        # Another thread may take the last one.
        with suppress(IndexError):
            return self.spare.pop(0)
        return self.train(1)[0]

    def train(self, count: int, width: int = 16) -> list[str]:
        """Return the ids of new training runs with a model."""
        env = clean_environment(
            **setup.client_environment(self.context),
            **IMPORTS,
        )
        argv = [sys.executable, "-m", "soak.train", EXPERIMENT, str(count), str(width)]
        done = subprocess.run(argv, cwd=REPO, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StackError(f"The models were not trained:\n{done.stderr[-1500:]}")
        # MLflow prints the address of each run too.
        return re.findall(r"^[0-9a-f]{32}$", done.stdout, re.MULTILINE)


@contextmanager
def running(home: Path, console: Console) -> Iterator[Rig]:
    """Start a stack in a folder of its own, lead Airflow's connections through the proxies, and stop it at the end."""
    layout = Layout(home)
    layout.create()
    Ports.free().remember(home)
    disk = home / "disk"
    (disk / "tmp").mkdir(parents=True, exist_ok=True)
    planted = {"environment": f"canary-{secrets.token_hex(16)}"}
    # Every service has it, and so has every task.
    os.environ |= _options(disk) | {"SOAK_CANARY": planted["environment"]}
    processes.START_TIMEOUT_S = _START_TIMEOUT_S
    with ExitStack() as stack:
        stack.callback(down, layout, console)
        context = up(layout, console)
        rig = Rig(context=context, disk=disk, planted=planted)
        stack.enter_context(led_through_proxies(rig))
        Release(rig.api, "none").await_dags()
        rig.api.patch(f"/dags/{WATCH_DAG_ID}", {"is_paused": True})
        yield rig


@contextmanager
def led_through_proxies(rig: Rig) -> Iterator[None]:
    """Lead Airflow's connections through proxies that make the faults of the rig, during the block."""
    context = rig.context
    with (
        proxy(context.minio_url, plan=rig.minio) as minio,
        proxy(context.mlflow_url, _signed_by(context.minio_url, minio), rig.mlflow) as mlflow,
    ):
        ports = dataclasses.replace(context.ports, minio=_port(minio), mlflow=_port(mlflow))
        for connection in setup.connections(dataclasses.replace(context, ports=ports)):
            rig.api.put_connection(connection)
        yield
        setup.configure_airflow(context)


def _signed_by(store: str, through: str) -> Change:
    """Lead the downloads through a proxy that a client makes from the store, at addresses that MLflow signs."""

    def change(_: str, path: str, status: int, body: bytes) -> tuple[int, bytes]:
        return status, body.replace(store.encode(), through.encode()) if "/presigned/" in path else body

    return change


def _options(disk: Path) -> dict[str, str]:
    """Return the variables of the stack's tasks. Everything that a task writes is below one folder."""
    prefix = "AIRFLOW__ONNX_RELEASE__"
    return {
        "TMPDIR": str(disk / "tmp"),
        "WATCH_EXPERIMENTS": _WATCHED,
        f"{prefix}STAGING_URI": (disk / "staging").as_uri(),
        f"{prefix}CACHE_FOLDER": str(disk / "cache"),
        f"{prefix}MEASURE_LOCK": str(disk / "measure.lock"),
    }


def _port(address: str) -> int:
    return urlsplit(address).port or 0
