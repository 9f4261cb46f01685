"""Servers for a measurement: in a temporary folder, on free ports, gone when the block is left, whatever happened."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stack import interrupts, lifecycle, minio, mlflow_server, processes
from stack.console import make_error_console
from stack.context import Context
from stack.credentials import Credentials
from stack.layout import Layout
from stack.ports import Ports, free_ports

EXPERIMENT = "bench"
# How fast a model is does not matter here, but each release measures it in the one-slot pool, as in earnest.
QUICK = {"batch_sizes": [1, 3], "on_miss": "warn", "measure_max_s": 1.0}
# MLflow's client in this process: no usage reports, and no line for each run that it ends.
CLIENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


@contextlib.contextmanager
def embedded_stack() -> Iterator[Context]:
    """Run the whole embedded stack, which watches `EXPERIMENT` and releases its runs with the parameters `QUICK`."""
    ports = Ports.free()
    variables = {
        "AIRFLOW_PORT": str(ports.airflow),
        "MLFLOW_PORT": str(ports.mlflow),
        "MINIO_PORT": str(ports.minio),
        "WATCH_EXPERIMENTS": EXPERIMENT,
        "WATCH_RELEASE_PARAMS": json.dumps(QUICK),
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
    """Run MLflow servers as the stack starts them, each with a database of its own, over one object store."""
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
            start_store(contexts[0])
            for context in contexts:
                processes.start(context.layout, mlflow_server.command(context))
            for context in contexts:
                processes.await_ready(context.layout, mlflow_server.NAME, partial(mlflow_server.is_healthy, context))
            yield contexts
        finally:
            with interrupts.ignored():
                for context in contexts:
                    processes.stop(context.layout, [mlflow_server.NAME])
                processes.stop(contexts[0].layout, [minio.NAME])


def start_store(context: Context) -> None:
    """Make the object store with its buckets, and start it."""
    minio.prepare(context)
    processes.start(context.layout, minio.command(context))
    processes.await_ready(context.layout, minio.NAME, partial(minio.is_healthy, context))
    minio.create_buckets(context)


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables of this process for as long as the block lasts."""
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
