"""Start and reach an embedded stack from tests, in a folder and on ports of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.environment import clean_environment
from stack.layout import REPO, Layout
from stack.lifecycle import load
from stack.minio import s3_client
from stack.setup import client_environment

COMMAND_TIMEOUT_S = 400
CLIENT_TIMEOUT_S = 300
# The experiment whose runs the tests' stack releases as they end; those of others are released by hand.
WATCHED = "watched"
# An alias that only a person may move.
PROTECTED = "production"
# How fast it is on this host does not matter here; that it is measured and reported does.
QUICK = {"batch_sizes": [1, 3], "on_miss": "warn", "measure_max_s": 1.0}


def stack_environment(home: Path, ports: list[int] | None = None) -> dict[str, str]:
    """Return the environment that points ``python -m stack`` at a folder and at ports (airflow, mlflow, minio)."""
    names = ("AIRFLOW_PORT", "MLFLOW_PORT", "MINIO_PORT")
    rest = {name: value for name, value in os.environ.items() if name not in (*names, "ONCE")}
    chosen = dict(zip(names, map(str, ports or []), strict=False))
    watch = {"WATCH_EXPERIMENTS": WATCHED, "WATCH_ROUTES": json.dumps([{"experiment": "*", "params": QUICK}])}
    return {**rest, "STACK_HOME": str(home), **chosen, **watch}


def run_stack(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``python -m stack COMMAND`` as make does."""
    return subprocess.run(
        [sys.executable, "-m", "stack", command],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )


@dataclass(frozen=True)
class RunningStack:
    """A started stack: its context (URLs, credentials, folders), clients, and the environments for child processes."""

    context: Context
    stack_env: dict[str, str]

    @property
    def api(self) -> AirflowApi:
        """A logged-in client of Airflow's REST API."""
        return AirflowApi(self.context)

    @property
    def s3(self) -> Any:
        """A boto3 client of MinIO."""
        return s3_client(self.context)

    @property
    def env(self) -> dict[str, str]:
        """The exports of `.local/env`: MLFLOW_TRACKING_URI, AWS_ACCESS_KEY_ID, AIRFLOW_API_URL and so on."""
        return client_environment(self.context)

    def child_env(self) -> dict[str, str]:
        """The whole environment for a client in a process of its own: the exports, and the project on PYTHONPATH."""
        path = os.pathsep.join(str(REPO / folder) for folder in ("include", "plugins", "."))
        # Nothing of the caller's own settings: MLflow's client, for one, leaves its server in the environment.
        return clean_environment(**self.env, PYTHONPATH=path)

    def python(self, *arguments: str) -> str:
        """Run Python in a fresh process with the stack's exports and return what it prints."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=REPO,
            env=self.child_env(),
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def small_runs(self, *names: str) -> list[str]:
        """Train small models into runs that are still running, and return their ids. A name is `experiment/seed`."""
        printed = self.python("-m", "tests.system.small_runs", *names)
        ids = re.findall(r"^[0-9a-f]{32}$", printed, re.MULTILINE)
        assert len(ids) == len(names), printed
        return ids

    def command(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run ``python -m stack NAME`` against this stack."""
        return run_stack(name, self.stack_env)


def describe(home: Path, environment: dict[str, str]) -> Context:
    """Read the started stack's description; its ports are remembered there, so this process needs no variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AIRFLOW_PORT", "MLFLOW_PORT", "MINIO_PORT"):
            patch.delenv(name, raising=False)
        context = load(Layout(home))
    assert context is not None
    assert str(context.ports.airflow) == environment["AIRFLOW_PORT"]
    return context


def processes_of(home: Path) -> list[psutil.Process]:
    """Every live process that works inside the state folder, which is where all of the stack's do."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(home):
                found.append(process)
    return found
