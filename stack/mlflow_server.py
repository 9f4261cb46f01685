"""MLflow's tracking server and registry: SQLite, with artifacts in the object store."""

from __future__ import annotations

from stack.context import Context
from stack.environment import clean_environment
from stack.http import answers
from stack.layout import tool
from stack.minio import REGION
from stack.ports import HOST
from stack.private import remove_database
from stack.processes import Command

NAME = "mlflow"
DATABASE = "mlflow.db"
COMPLETE = "complete"


def prepare(context: Context) -> None:
    """Remove a database whose first start was interrupted. MLflow cannot complete a part of its tables."""
    if not (context.layout.mlflow / COMPLETE).exists():
        remove_database(context.layout.mlflow / DATABASE)


def mark_complete(context: Context) -> None:
    """Record that the server has started, so its database is complete."""
    (context.layout.mlflow / COMPLETE).touch()


def command(context: Context) -> Command:
    """Return the start command of the server.

    Clients need no S3 keys: the server transfers artifacts (`--serve-artifacts`). One worker is enough: it uses
    threads, and SQLite has one writer.
    """
    argv = [tool("mlflow"), "server", "--host", HOST, "--port", str(context.ports.mlflow), "--workers", "1"]
    argv += ["--backend-store-uri", f"sqlite:///{context.layout.mlflow / DATABASE}", "--serve-artifacts"]
    argv += ["--artifacts-destination", "s3://mlflow"]
    return Command(NAME, tuple(argv), _environment(context), context.layout.mlflow)


def is_healthy(context: Context) -> bool:
    """Return True when the server answers."""
    return answers(f"{context.mlflow_url}/health")


def _environment(context: Context) -> dict[str, str]:
    return clean_environment(
        AWS_ACCESS_KEY_ID=context.credentials.minio_access_key,
        AWS_SECRET_ACCESS_KEY=context.credentials.minio_secret_key,
        AWS_DEFAULT_REGION=REGION,
        AWS_REQUEST_CHECKSUM_CALCULATION="when_required",
        AWS_RESPONSE_CHECKSUM_VALIDATION="when_required",
        # A missing file: otherwise boto3 reads the user's ~/.aws.
        AWS_CONFIG_FILE=str(context.layout.mlflow / "no-aws-config"),
        AWS_SHARED_CREDENTIALS_FILE=str(context.layout.mlflow / "no-aws-credentials"),
        AWS_EC2_METADATA_DISABLED="true",
        MLFLOW_S3_ENDPOINT_URL=context.minio_url,
        # The job runner (LLM judges) would start two more processes.
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        MLFLOW_DISABLE_TELEMETRY="true",
    )
