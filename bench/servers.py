"""Servers for a measurement: in a temporary folder, on free ports, stopped and removed at the end of the block."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from bench.sides import Step
from stack import interrupts, lifecycle, minio, mlflow_server, processes, setup
from stack.console import make_error_console
from stack.context import Context
from stack.credentials import Credentials
from stack.environment import NO_TELEMETRY
from stack.layout import Layout
from stack.ports import Ports, free_ports

EXPERIMENT = "bench"
MODEL_NAME = "bench-onnx"
# Short measurements: these figures do not depend on a model's speed. Each still uses the pool with one slot.
QUICK = {"model_name": MODEL_NAME, "batch_sizes": [1, 3], "on_miss": "warn", "measure_max_s": 1.0}
# MLflow's client in this process: no usage reports, and no line for each ended run.
CLIENT = {**NO_TELEMETRY, "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


@contextlib.contextmanager
def embedded_stack(parameters: Mapping[str, Any] = QUICK) -> Iterator[Context]:
    """Run the embedded stack; it watches `EXPERIMENT` and releases its runs with these parameters."""
    ports = Ports.free()
    variables = {
        "AIRFLOW_PORT": str(ports.airflow),
        "MLFLOW_PORT": str(ports.mlflow),
        "MINIO_PORT": str(ports.minio),
        "WATCH_EXPERIMENTS": EXPERIMENT,
        "WATCH_ROUTES": json.dumps([{"experiment": "*", "params": dict(parameters)}]),
    }
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, environment(**variables, **CLIENT):
        layout = Layout(Path(folder, "state").resolve())
        try:
            yield lifecycle.up(layout, make_error_console())
        finally:
            with interrupts.ignored():
                lifecycle.down(layout, make_error_console())


@contextlib.contextmanager
def mlflow_servers(count: int) -> Iterator[list[Context]]:
    """Run MLflow servers, each with a separate database, over one object store."""
    store, *ports = free_ports(1 + count)
    secrets = Credentials.generate()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, environment(**CLIENT):
        contexts = [
            Context(Layout(Path(folder, str(number)).resolve()), Ports(mlflow=port, minio=store), secrets)
            for number, port in enumerate(ports)
        ]
        try:
            for context in contexts:
                context.layout.create()
            _start_store(contexts[0])
            for context in contexts:
                database = mlflow_server.sqlite_store(context)
                processes.start(context.layout, mlflow_server.command(context, database))
            for context in contexts:
                processes.await_ready(context.layout, mlflow_server.NAME, partial(mlflow_server.is_healthy, context))
            yield contexts
        finally:
            with interrupts.ignored():
                for context in contexts:
                    processes.stop(context.layout, [mlflow_server.NAME])
                processes.stop(contexts[0].layout, [minio.NAME])


@contextlib.contextmanager
def object_store() -> Iterator[dict[str, str]]:
    """Run the object store; yields the environment of a step that reaches it with boto3 or Airflow's connection."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        layout = Layout(Path(folder, "state").resolve())
        context = Context(layout, Ports.free(), Credentials.generate())
        try:
            layout.create()
            _start_store(context)
            yield store_environment(context)
        finally:
            with interrupts.ignored():
                processes.stop(layout, [minio.NAME])


def store_environment(context: Context) -> dict[str, str]:
    """Return the environment of a step that reaches store and MLflow with boto3 or Airflow's connections."""
    return {
        "S3_URL": context.minio_url,
        "S3_BUCKET": minio.BUCKETS[0],
        "AWS_ACCESS_KEY_ID": context.credentials.minio_access_key,
        "AWS_SECRET_ACCESS_KEY": context.credentials.minio_secret_key,
        "AIRFLOW_HOME": str(context.layout.airflow_home),
        **setup.connection_environment(context),
    }


def clear_store(env: dict[str, str]) -> None:
    """Delete all objects: each side starts with an empty store."""
    Step("bench.upload_steps:clear", (), env).run()


def _start_store(context: Context) -> None:
    minio.prepare(context)
    processes.start(context.layout, minio.command(context))
    processes.await_ready(context.layout, minio.NAME, partial(minio.is_healthy, context))
    minio.set_up(context)


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables of this process during the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
