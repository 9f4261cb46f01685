"""Services that a deployment has before the package: an S3 store, MLflow, and a stock Airflow on loopback."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from adoption.environment import Environment
from stack import interrupts, minio, mlflow_server, processes, services
from stack.airflow import API_SERVER, BACKGROUND
from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.layout import REPO
from stack.ports import HOST
from stack.private import write_private
from stack.processes import Command

AIRFLOW = (API_SERVER, *BACKGROUND)
ACCOUNT = "adopter"
# The bucket of the first model is its own. The second model has a folder in a bucket that others use too.
FIRST_BUCKET = "models"
SHARED_BUCKET, SHARED_PREFIX = "acme-models", "churn"


class Deployment:
    """Store, MLflow and Airflow of one state folder. `stop` ends every process."""

    def __init__(self, context: Context, environment: Environment) -> None:
        self.context = context
        self.environment = environment
        self.api = AirflowApi(context)

    @property
    def home(self) -> Path:
        """Airflow's folder."""
        return self.context.layout.airflow_home

    def start_store_and_mlflow(self) -> None:
        """Start both, and create the buckets and an account with the rights that the documentation lists."""
        minio.prepare(self.context)
        self._start([minio.command(self.context)])
        minio.set_up(self.context)
        client = minio.s3_client(self.context)
        for bucket in (FIRST_BUCKET, SHARED_BUCKET):
            client.create_bucket(Bucket=bucket)
        _create_account(self.context)
        self._start([mlflow_server.command(self.context, mlflow_server.sqlite_store(self.context))])

    def prepare_airflow(self) -> None:
        """Create Airflow's metadata database and a login, without the package."""
        secrets = self.context.credentials
        login = {secrets.airflow_username: secrets.airflow_password}
        write_private(self.home / "simple_auth_manager_passwords.json.generated", json.dumps(login) + "\n")
        (self.home / "dags").mkdir()
        self.airflow("db", "migrate")

    def airflow(self, *argv: str) -> str:
        """Run Airflow's command line and return its output."""
        return self.environment.run(["airflow", *argv], self.home, **self._variables())

    def start_airflow(self) -> None:
        """Start the components and wait until each has a heartbeat.

        `airflow standalone` listens on every address of the machine, and so do the log servers.
        """
        api = ("api-server", "--host", HOST, "--port", str(self.context.ports.airflow))
        arguments = (api, ("scheduler", "--skip-serve-logs"), ("triggerer", "--skip-serve-logs"), ("dag-processor",))
        env, program = self.environment.variables(**self._variables()), self.environment.program("airflow")
        self._start(
            Command(name, (program, *argv), env, self.home) for name, argv in zip(AIRFLOW, arguments, strict=True)
        )

    def stop_airflow(self) -> None:
        """Stop the components, as before an installation."""
        processes.stop(self.context.layout, AIRFLOW)

    def stop(self) -> None:
        """Stop every process, the writers first."""
        with interrupts.ignored():
            for row in (AIRFLOW, (mlflow_server.NAME,), (minio.NAME,)):
                processes.stop(self.context.layout, row)

    def remove(self) -> None:
        """Delete the state folder and the copy of the environment."""
        with interrupts.ignored():
            self.context.layout.remove()
            shutil.rmtree(self.environment.venv, ignore_errors=True)

    def _start(self, commands: Iterable[Command]) -> None:
        layout, began = self.context.layout, time.monotonic()
        names = [processes.start(layout, command).name for command in commands]
        for name in names:
            processes.await_ready(layout, name, partial(services.is_ready, self.context, name), began)

    def _variables(self) -> dict[str, str]:
        """Return Airflow's settings: its own defaults, but for its addresses."""
        return {
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.context.airflow_url}/execution/",
            "AIRFLOW__API__BASE_URL": self.context.airflow_url,
            # The default asks DNS for the full name, which takes seconds without a DNS server.
            "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
        }


def _create_account(context: Context) -> None:
    """Create the account of the releases: its own bucket, and one folder of the shared bucket."""
    from minio import MinioAdmin
    from minio.credentials.providers import StaticProvider

    secrets = context.credentials
    root = StaticProvider(secrets.minio_access_key, secrets.minio_secret_key)
    admin = MinioAdmin(endpoint=f"{HOST}:{context.ports.minio}", credentials=root, secure=False)
    file = context.layout.home / "policy.json"
    file.write_text(json.dumps(policy()))
    admin.user_add(ACCOUNT, secrets.release_secret_key)
    admin.policy_add(ACCOUNT, file)
    admin.policy_set(ACCOUNT, user=ACCOUNT)


def policy() -> dict[str, Any]:
    """Return the rights of docs/connections.md: a bucket of its own, and a folder of a bucket of others."""
    first = _policy_file("release-policy.json", "heimdall-models", FIRST_BUCKET)
    second = _policy_file("team-policy.json", "models/teams/radio", f"{SHARED_BUCKET}/{SHARED_PREFIX}")
    return first | {"Statement": [*first["Statement"], *second["Statement"]]}


def _policy_file(name: str, folder: str, own: str) -> dict[str, Any]:
    """Return a policy of deploy/minio with a folder of this deployment in place of its own one."""
    bucket, _, prefix = folder.partition("/")
    own_bucket, _, own_prefix = own.partition("/")
    text = (REPO / "deploy" / "minio" / name).read_text()
    text = text.replace(f":::{bucket}", f":::{own_bucket}")
    found: dict[str, Any] = json.loads(text.replace(prefix, own_prefix) if prefix else text)
    return found
