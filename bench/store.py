"""The object store alone, as the stack starts it, for as long as a measurement lasts."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.sides import Step, run_step
from bench.watch.stacks import start_store
from stack import interrupts, minio, processes, setup
from stack.context import Context
from stack.credentials import Credentials
from stack.layout import Layout
from stack.ports import Ports

BUCKET = minio.BUCKETS[0]


@contextlib.contextmanager
def store() -> Iterator[dict[str, str]]:
    """Run the store; yields what a step's environment needs to reach it, by boto3 and by Airflow's connection."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        layout = Layout(Path(folder, "state").resolve())
        context = Context(layout, Ports.free(), Credentials.generate())
        try:
            layout.create()
            start_store(context)
            yield _environment(context)
        finally:
            with interrupts.ignored():
                processes.stop(layout, [minio.NAME])


def clean(env: dict[str, str]) -> None:
    """Remove all objects, so that the next side finds the store as this one did."""
    run_step(Step("bench.upload_steps", ("clean", "."), env))


def _environment(context: Context) -> dict[str, str]:
    return {
        "S3_URL": context.minio_url,
        "S3_BUCKET": BUCKET,
        "AWS_ACCESS_KEY_ID": context.credentials.minio_access_key,
        "AWS_SECRET_ACCESS_KEY": context.credentials.minio_secret_key,
        "AIRFLOW_HOME": str(context.layout.airflow_home),
        **setup.connection_environment(context),
    }
