"""A real MLflow server and a real MinIO gateway, for tests that need no scheduler."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest

from stack import minio, mlflow_server, processes
from stack.context import Context
from stack.credentials import Credentials
from stack.layout import Layout
from stack.ports import Ports
from tests.guard import guarded


@dataclass(frozen=True)
class Services:
    """The running services, and their addresses and keys."""

    context: Context

    def stop(self, name: str) -> None:
        """Stop one of them, as an outage does."""
        processes.stop(self.context.layout, [name])

    def start(self, name: str, **variables: str) -> None:
        """Start one of them, with more environment variables, and wait until it answers."""
        service = {minio.NAME: minio, mlflow_server.NAME: mlflow_server}[name]
        database = mlflow_server.sqlite_store(self.context)
        command = minio.command(self.context) if service is minio else mlflow_server.command(self.context, database)
        processes.start(self.context.layout, dataclasses.replace(command, env=command.env | variables))
        processes.await_ready(self.context.layout, name, partial(service.is_healthy, self.context))

    def keys(self) -> dict[str, str]:
        """The environment of a consumer who has the keys to the store."""
        keys = self.context.credentials
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.context.minio_url,
            "AWS_ACCESS_KEY_ID": keys.minio_access_key,
            "AWS_SECRET_ACCESS_KEY": keys.minio_secret_key,
        }

    def serve(self, uri: str) -> Any:
        """Load a version as a consumer does, whose environment has the keys to the store."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.keys().items():
                patch.setenv(name, value)
            return mlflow.pyfunc.load_model(uri)


@contextmanager
def running_services(home: Path) -> Iterator[Services]:
    """Start the services with their state in a folder, and stop them at the end."""
    layout = Layout(home)
    layout.create()
    running = Services(Context(layout, Ports.free(), Credentials.generate()))
    minio.prepare(running.context)
    with guarded(layout.home):
        running.start(minio.NAME)
        minio.set_up(running.context)
        running.start(mlflow_server.NAME)
        yield running
