"""Object store: JuiceFS's S3 gateway, which is MinIO's server code over a SQLite file and a folder."""

from __future__ import annotations

from typing import Any

from stack import children
from stack.context import Context
from stack.environment import clean_environment
from stack.errors import StackError
from stack.http import answers
from stack.layout import REPO, tool
from stack.ports import HOST
from stack.processes import Command

NAME = "minio"
REGION = "us-east-1"
RELEASE_BUCKET = "heimdall-models"
BUCKETS = (RELEASE_BUCKET, "mlflow")
# Accounts with the rights of those in docker-compose.yaml.
RELEASE_ACCOUNT = "onnx-release"
MLFLOW_ACCOUNT = "mlflow"


def prepare(context: Context) -> None:
    """Format the store, once."""
    folder = context.layout.minio
    if (folder / "formatted").exists():
        return
    # `--trash-days 0`: without the gateway's background jobs, deleted objects would keep their bytes for ever.
    argv = [tool("juicefs"), "--no-agent", "format", "--no-update", "--trash-days", "0", "--storage", "file"]
    argv += ["--bucket", f"{folder / 'data'}/", _metadata(context), "store"]
    status, output = children.run(argv, clean_environment(), folder)
    if status != 0:
        raise StackError(f"The object store in {folder} cannot be created:\n{output[-800:]}")
    (folder / "formatted").touch()


def command(context: Context) -> Command:
    """Return the start command of the gateway: S3 API, and metrics on a free port, both on loopback."""
    secrets = context.credentials
    # `--no-agent`: no unauthenticated profiler on port 6060.
    argv = [tool("juicefs"), "--no-agent", "gateway", "--multi-buckets", "--keep-etag", "--object-meta"]
    argv += ["--object-tag", "--no-bgjob", "--no-usage-report", "--metrics", "127.0.0.1:0"]
    argv += ["--cache-dir", str(context.layout.minio / "cache"), "--cache-size", "512", _metadata(context)]
    argv += [f"127.0.0.1:{context.ports.minio}"]
    env = clean_environment(MINIO_ROOT_USER=secrets.minio_access_key, MINIO_ROOT_PASSWORD=secrets.minio_secret_key)
    return Command(NAME, tuple(argv), env, context.layout.minio)


def is_healthy(context: Context) -> bool:
    """Return True when the gateway answers."""
    return answers(f"{context.minio_url}/minio/health/live")


def set_up(context: Context) -> None:
    """Create the buckets for models and for MLflow's artifacts, and the accounts. This also checks the credentials."""
    from botocore.exceptions import BotoCoreError, ClientError
    from minio.error import MinioAdminException
    from urllib3.exceptions import HTTPError

    client = s3_client(context)
    try:
        existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        for name in BUCKETS:
            if name not in existing:
                client.create_bucket(Bucket=name)
        _create_accounts(context)
    except (BotoCoreError, ClientError, MinioAdminException, HTTPError) as error:
        raise StackError(f"MinIO at {context.minio_url} refuses its credentials or buckets: {error}") from error


def _create_accounts(context: Context) -> None:
    """Create the accounts of Airflow and of MLflow, or set their secrets and rights again."""
    from minio import MinioAdmin
    from minio.credentials.providers import StaticProvider

    secrets = context.credentials
    root = StaticProvider(secrets.minio_access_key, secrets.minio_secret_key)
    admin = MinioAdmin(endpoint=f"{HOST}:{context.ports.minio}", credentials=root, secure=False)
    for account, secret, policy in (
        (RELEASE_ACCOUNT, secrets.release_secret_key, "release"),
        (MLFLOW_ACCOUNT, secrets.mlflow_secret_key, "mlflow"),
    ):
        admin.user_add(account, secret)
        admin.policy_add(policy, REPO / "deploy" / "minio" / f"{policy}-policy.json")
        admin.policy_set(policy, user=account)


def s3_client(context: Context, account: str = "", secret: str = "") -> Any:
    """Return a boto3 S3 client for the gateway, by default with the root credentials."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=context.minio_url,
        aws_access_key_id=account or context.credentials.minio_access_key,
        aws_secret_access_key=secret or context.credentials.minio_secret_key,
        region_name=REGION,
        config=Config(**S3_CONFIG),
    )


# boto3 >= 1.36 sends CRC trailers by default, which some S3 servers refuse. Bucket names in host names need DNS.
S3_CONFIG: dict[str, Any] = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "s3": {"addressing_style": "path"},
    "proxies": {},
}


def _metadata(context: Context) -> str:
    return f"sqlite3://{context.layout.minio / 'metadata.db'}"
