"""Errors of an S3 store and of its connection, as `StorageRefused` or `Transient`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.sdk import BaseHook

from airflow_onnx.errors import StorageRefused
from airflow_onnx.hooks.s3_store import S3StoreHook, aws_extra
from onnx_release.errors import Transient
from onnx_release.text import shorten

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_onnx.storage.s3 import S3Folder

_OUTAGE = "Airflow tries again. If that does not help, check the store's log and the network."
_RERUN = "clear the task '{rerun}' with its downstream tasks"
_CHANGED = ("object_changed", f"Another program writes there: find it, then {_RERUN}.")
_ACCESS = ("access_denied", "Check the key, the secret and the account's policy in the connection.")
_REGION = ("wrong_address", "Correct the region and the address (endpoint_url) in the connection.")
_FULL = "Free space in the store, or raise the quota of the bucket. Airflow tries again."
_BUCKET_NAME = ("bucket_name", "Name another bucket.")
# Error codes of S3 that a retry repeats, with our code and the next action. A HEAD request returns only the number.
_FINAL_ERRORS = {
    "NoSuchBucket": ("no_bucket", "Create the bucket, or name another one."),
    "NoSuchKey": ("no_object", f"Put the object there again: {_RERUN}."),
    "404": ("not_found", f"Create the bucket, or {_RERUN}."),
    "PreconditionFailed": _CHANGED,
    "412": _CHANGED,
    "AccessDenied": _ACCESS,
    "403": _ACCESS,
    "401": _ACCESS,
    "AllAccessDisabled": _ACCESS,
    "ExpiredToken": _ACCESS,
    "InvalidAccessKeyId": _ACCESS,
    "InvalidToken": _ACCESS,
    "SignatureDoesNotMatch": _ACCESS,
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
    "InvalidBucketName": _BUCKET_NAME,
}  # fmt: skip
_CLOCK_ERROR = "RequestTimeTooSkewed"
# A store refuses a signature of this age.
_CLOCK_MAX_S = 900.0
_CLOCK = "Synchronize the clocks of both hosts, for example with chrony. Airflow tries again."
_FULL_ERRORS = {"QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull"}
# Refused with a status below 500, though the next try may succeed: load, a lost connection, bytes damaged on the way.
_RETRIED_ERRORS = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "InvalidPart",
    "NoSuchUpload",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentSHA256Mismatch",
}
_RETRIED_STATUS = {408, 409, 423, 425, 429}
# Errors of boto's client without a request: the connection has to change.
_CLIENT_REFUSALS = (
    "InvalidConfigError",
    "InvalidProxiesConfigError",
    "InvalidRegionError",
    "InvalidS3AddressingStyleError",
    "MissingDependencyException",
    "NoCredentialsError",
    "NoRegionError",
    "ParamValidationError",
    "PartialCredentialsError",
    "ProfileNotFound",
)


def require_connection(conn_id: str) -> Connection:
    """Return a connection. Raise if it is missing, or if its address has another form.

    Airflow's hook takes the worker's own credentials for a missing connection, and another store.

    :raises AirflowNotFoundException: if the connection does not exist.
    :raises StorageRefused: if its extra is not a JSON object, or its server or `endpoint_url` is not an address.
    """
    conn = BaseHook.get_connection(conn_id)
    subject = f"The Airflow connection '{conn_id}'"
    try:
        extra = aws_extra(conn)
        service = (extra.get("service_config") or {}).get("s3") or {}
        endpoint = str(extra.get("endpoint_url") or service.get("endpoint_url") or "")
    except (AttributeError, TypeError, ValueError) as error:
        problem = f"has an extra that cannot be read: {shorten(error)}"
        raise StorageRefused(
            subject, problem, "Give a JSON object: see docs/connections.md.", code="wrong_extra"
        ) from error
    if _is_address(endpoint) or not (endpoint or conn.conn_type == S3StoreHook.conn_type):
        return conn
    raise StorageRefused(
        subject,
        f"has the server (endpoint_url) {endpoint!r:.200}, which is not an address",
        "Write it as http://host:port or https://host.",
        code="wrong_address",
    )


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        # Reading the port checks it.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


@contextmanager
def store_errors(folder: S3Folder, subject: str) -> Iterator[None]:
    """Turn boto3's errors into `StorageRefused` or `Transient`, with the next action.

    :param subject: the object or request, as the start of a sentence.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    conn_id = folder.hook.aws_conn_id
    place = f"{subject} at {folder.uri} (connection '{conn_id}')"
    try:
        yield
    except (ClientError, Boto3Error) as error:
        # boto3's transfer wraps the store's answer and keeps it as the context of its own exception.
        answer = error if isinstance(error, ClientError) else error.__context__
        if isinstance(answer, ClientError) and (wrong := _wrong_clock(answer)):
            raise Transient(place, wrong, _CLOCK) from error
        if isinstance(answer, ClientError) and (refusal := _refusal(folder, place, answer)):
            raise refusal from error
        if isinstance(answer, ClientError) and _code(answer) in _FULL_ERRORS:
            raise Transient(place, f"found the store full: {shorten(answer)}", _FULL) from error
        raise Transient(place, f"failed in the store: {shorten(error)}", _OUTAGE) from error
    except ResponseParserError as error:
        action = (
            f"Check that endpoint_url of the connection '{conn_id}' is the S3 address of the store, not its console."
        )
        raise Transient(place, f"got an answer that is not S3's: {shorten(error)}", action) from error
    except (BotoCoreError, ValueError) as error:
        if type(error).__name__ in _CLIENT_REFUSALS or not isinstance(error, BotoCoreError):
            raise StorageRefused(
                place, f"cannot be requested: {shorten(error)}", _ACCESS[1], code="invalid_request"
            ) from error
        action = f"Airflow tries again. If that does not help, check endpoint_url of the connection '{conn_id}': "
        action += "address, port, http or https, and the certificate."
        raise Transient(place, f"cannot be reached: {shorten(error)}", action) from error


def _code(answer: Any) -> str:
    return str(answer.response.get("Error", {}).get("Code", ""))


def _wrong_clock(answer: Any) -> str:
    """Return the problem of an answer to a signature with a wrong time. It is the fault of a host, and may heal."""
    status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    headers = answer.response.get("ResponseMetadata", {}).get("HTTPHeaders") or {}
    try:
        difference_s = time.time() - parsedate_to_datetime(headers.get("date") or "").timestamp()
    except ValueError:
        difference_s = 0.0
    # The answer to a HEAD request has no code.
    if _code(answer) == _CLOCK_ERROR or (status == HTTPStatus.FORBIDDEN and abs(difference_s) > _CLOCK_MAX_S):
        return f"was refused by the store: the clock of this worker differs from the store's by {difference_s:.0f} s"
    return ""


def _refusal(folder: S3Folder, place: str, answer: Any) -> StorageRefused | None:
    """Return the refusal for an answer that a retry repeats, None for another one."""
    s3_code = _code(answer)
    status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0
    if s3_code in _FINAL_ERRORS:
        code, action = _FINAL_ERRORS[s3_code]
    elif s3_code in _RETRIED_ERRORS | _FULL_ERRORS or status in _RETRIED_STATUS or not 300 <= status < 500:
        return None
    else:
        code, action = "store_refused", f"Check the connection '{folder.hook.aws_conn_id}' and the store's log."
    if folder.rerun is None and _RERUN in action:
        action = "Check the bucket and the path."
    detail = "" if s3_code in _FINAL_ERRORS else f": {shorten(answer)}"
    problem = f"was refused by the store ({s3_code or status}){detail}"
    return StorageRefused(place, problem, action.format(rerun=folder.rerun), code=code)
