"""MLflow's tracking server and registry: SQLite, with the artifacts in the object store behind it."""

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
    """Remove a database whose first start was interrupted: MLflow does not go on with half of its tables."""
    if not (context.layout.mlflow / COMPLETE).exists():
        remove_database(context.layout.mlflow / DATABASE)


def mark_complete(context: Context) -> None:
    """Note that the server has come up, and so its database is whole."""
    (context.layout.mlflow / COMPLETE).touch()


def command(context: Context) -> Command:
    """Return how to start the server.

    Clients need no S3 keys: the server passes artifacts through (`--serve-artifacts`). One worker is enough: it serves
    requests in threads, and SQLite has one writer anyway.
    """
    argv = [tool("mlflow"), "server", "--host", HOST, "--port", str(context.ports.mlflow), "--workers", "1"]
    argv += ["--backend-store-uri", f"sqlite:///{context.layout.mlflow / DATABASE}", "--serve-artifacts"]
    argv += ["--artifacts-destination", "s3://mlflow"]
    return Command(NAME, tuple(argv), _environment(context), context.layout.mlflow)


def is_healthy(context: Context) -> bool:
    """Tell whether the server serves."""
    return answers(f"{context.mlflow_url}/health")


def _environment(context: Context) -> dict[str, str]:
    return clean_environment(
        AWS_ACCESS_KEY_ID=context.credentials.minio_access_key,
        AWS_SECRET_ACCESS_KEY=context.credentials.minio_secret_key,
        AWS_DEFAULT_REGION=REGION,
        AWS_REQUEST_CHECKSUM_CALCULATION="when_required",
        AWS_RESPONSE_CHECKSUM_VALIDATION="when_required",
        # An absent file: without this, boto3 would read the user's own ~/.aws.
        AWS_CONFIG_FILE=str(context.layout.mlflow / "no-aws-config"),
        AWS_SHARED_CREDENTIALS_FILE=str(context.layout.mlflow / "no-aws-credentials"),
        AWS_EC2_METADATA_DISABLED="true",
        MLFLOW_S3_ENDPOINT_URL=context.minio_url,
        # The job runner (LLM judges) would cost two more processes.
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        MLFLOW_DISABLE_TELEMETRY="true",
    )
