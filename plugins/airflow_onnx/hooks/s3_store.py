"""Airflow hook for an S3 store outside AWS (MinIO, Ceph, a gateway), with the connection type `s3store`.

Airflow's own type `aws` works too, but its Test button calls STS, which these stores lack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from airflow_onnx.deployment import settings
from airflow_onnx.hooks.address import server_address

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from airflow.sdk import Connection

REGION = "us-east-1"
# boto3 sends CRC trailers by default, which some S3 servers refuse. Bucket names in host names need DNS.
CLIENT_CONFIG: dict[str, Any] = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "s3": {"addressing_style": "path"},
}
_CONNECT_MAX_S = 10.0
# A person, or a task before its work, waits for the answers of a check.
PROBE_CONFIG: dict[str, Any] = {"connect_timeout": 5, "read_timeout": 10, "retries": {"max_attempts": 1}}


class S3StoreHook(BaseHook):
    """The form of a connection to an S3 store, with its test.

    :param s3_conn_id: a connection of type `s3store` or `aws`. Its fields are described in docs/connections.md.
    """

    conn_name_attr = "s3_conn_id"
    default_conn_name = "minio_default"
    conn_type = "s3store"
    hook_name = "S3 store"

    def __init__(self, s3_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.s3_conn_id = s3_conn_id

    def get_conn(self) -> Any:
        """Return boto3's client."""
        return s3_hook(self.get_connection(self.s3_conn_id)).get_conn()

    def test_connection(self) -> tuple[bool, str]:
        """Put, read, copy and delete an object below the prefix of the releases, for the Test button of the form."""
        from airflow_onnx.preflight.checks import State, Subject
        from airflow_onnx.preflight.store import StoreProbe

        bucket = settings.bucket()
        if not bucket:
            return False, "The test needs a bucket. Set the option [onnx_release] bucket."
        subject = Subject(self.conn_type)
        probe = StoreProbe(self.s3_conn_id, f"s3://{bucket}/{settings.prefix()}")
        probe.run(subject)
        problems = [f"{check.found}. {check.action}" for check in subject.checks if check.state is State.FAILED]
        if problems:
            return False, " ".join(problems)
        endpoint = probe.folder.hook.conn_config.endpoint_url or "Amazon S3"
        return True, f"The store at {endpoint} answers, and the bucket '{bucket}' can be written."


def aws_extra(conn: Connection) -> dict[str, Any]:
    """Return the extra of a connection in the form of Airflow's type `aws`.

    :raises Exception: for an extra that is not a JSON object, as Airflow raises it.
    """
    extra: dict[str, Any] = conn.extra_dejson
    if conn.conn_type != S3StoreHook.conn_type:
        return extra
    given = {name: value for name, value in extra.items() if value not in (None, "")}
    address = server_address(conn)
    endpoint = {"endpoint_url": address.geturl() if address else str(conn.host or "")}
    return {"region_name": REGION, "config_kwargs": CLIENT_CONFIG} | endpoint | given


def _limits() -> dict[str, Any]:
    """Return the time limits of one request. Airflow retries the whole task, so the client repeats a request twice."""
    read_s = settings.request_timeout_s()
    retries = {"mode": "standard", "total_max_attempts": 3}
    return {"connect_timeout": min(_CONNECT_MAX_S, read_s), "read_timeout": read_s, "retries": retries}


def s3_hook(conn: Connection, *, config: dict[str, Any] | None = None, **arguments: Any) -> S3Hook:
    """Return Airflow's S3 hook for a connection.

    :param conn: a connection of type `s3store` or `aws`.
    :param config: options of botocore's client, which replace those of the connection.
    :param arguments: more arguments of the hook.
    """
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper

    hook = S3Hook(conn.conn_id, **arguments)
    extra = aws_extra(conn)
    extra["config_kwargs"] = {**_limits(), **(extra.get("config_kwargs") or {}), **(config or {})}
    # Airflow's wrapper warns about another type than `aws`.
    hook.conn_config = AwsConnectionWrapper.from_connection_metadata(conn.conn_id, conn.login, conn.password, extra)
    return hook
