"""MLflow's tracking server and registry: records in PostgreSQL, artifacts in the object store."""

from __future__ import annotations

from stack import postgres
from stack.context import Context
from stack.environment import clean_environment
from stack.http import answers
from stack.layout import tool
from stack.minio import MLFLOW_ACCOUNT, REGION
from stack.ports import HOST
from stack.processes import Command

NAME = "mlflow"
COMPLETE = "complete"


def prepare(context: Context) -> None:
    """Create the database, once. MLflow cannot complete the tables of an interrupted first start."""
    if not (context.layout.mlflow / COMPLETE).exists():
        postgres.create_database(context.layout, postgres.MLFLOW)


def mark_complete(context: Context) -> None:
    """Record that the server has started, so its database is complete."""
    (context.layout.mlflow / COMPLETE).touch()


def command(context: Context, store: str | None = None) -> Command:
    """Return the start command of the server.

    Clients need no S3 keys: the server transfers artifacts (`--serve-artifacts`). One worker is enough: it uses
    threads.

    :param store: SQLAlchemy URI of another database than that of the stack.
    """
    store = store or postgres.uri(context.layout, postgres.MLFLOW)
    argv = [tool("mlflow"), "server", "--host", HOST, "--port", str(context.ports.mlflow), "--workers", "1"]
    argv += ["--backend-store-uri", store, "--serve-artifacts"]
    argv += ["--artifacts-destination", "s3://mlflow"]
    return Command(NAME, tuple(argv), _environment(context), context.layout.mlflow)


def sqlite_store(context: Context) -> str:
    """Return the URI of a SQLite file, for a server of tests and measurements that has no PostgreSQL."""
    return f"sqlite:///{context.layout.mlflow / 'mlflow.sqlite'}"


def is_healthy(context: Context) -> bool:
    """Return True when the server answers."""
    return answers(f"{context.mlflow_url}/health")


def _environment(context: Context) -> dict[str, str]:
    return clean_environment(
        AWS_ACCESS_KEY_ID=MLFLOW_ACCOUNT,
        AWS_SECRET_ACCESS_KEY=context.credentials.mlflow_secret_key,
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
    )
