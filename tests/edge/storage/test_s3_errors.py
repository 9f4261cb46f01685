"""Errors of stores and connections: refused for good, or retried, each with the next action."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_onnx.storage import s3
from onnx_release.errors import Transient
from tests.edge.conftest import Services
from tests.refusals import refused


class Answer(BaseHTTPRequestHandler):
    """Server that gives one answer to every request."""

    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        """Answer a listing."""
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@pytest.fixture
def store() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a folder of a connection with the given extra."""

    def folder(extra: Any, **fields: Any) -> s3.S3Folder:
        if isinstance(extra, dict):
            # botocore repeats a failed request by itself; the tests need one.
            config = {"retries": {"max_attempts": 1}, "connect_timeout": 2, "s3": {"addressing_style": "path"}}
            extra = {"region_name": "us-east-1", "config_kwargs": config} | extra
        connection = {"conn_type": "aws", "login": "a-key", "password": "a-secret", "extra": extra} | fields
        monkeypatch.setenv("AIRFLOW_CONN_TRIAL", json.dumps(connection))
        return s3.folder_at("trial", "s3://heimdall-models/x")

    return folder


@pytest.mark.parametrize(
    "endpoint",
    ["127.0.0.1:9000", "minio", "ftp://minio:9000", "http://", "http://minio:99999", "http://minio:port", "//minio"],
)
def test_an_endpoint_that_is_no_address_is_refused_with_the_right_form(trial: Any, endpoint: str) -> None:
    for extra in ({"endpoint_url": endpoint}, {"service_config": {"s3": {"endpoint_url": endpoint}}}):
        with refused("wrong_address", "'trial'", "endpoint_url", endpoint, "http://host:port"):
            trial(extra)


def test_an_extra_that_is_not_an_object_is_refused(trial: Any) -> None:
    with refused("wrong_extra", "'trial'"):
        trial({"service_config": "s3"})


def test_a_missing_connection_does_not_become_the_workers_own_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-worker")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-worker")
    with pytest.raises(AirflowNotFoundException, match="no_such_store"):
        s3.folder_at("no_such_store", "s3://heimdall-models/x")


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("http://127.0.0.1:1", "endpoint_url"),
        ("http://no-such-host.invalid:9000", "endpoint_url"),
        ("https://{store}", "certificate"),
    ],
    ids=["closed port", "unknown host", "https to an http port"],
)
def test_a_store_that_cannot_be_reached_is_transient_and_names_the_connection(
    trial: Any, store: str, endpoint: str, words: str
) -> None:
    folder = trial({"endpoint_url": endpoint.format(store=store)})
    with pytest.raises(Transient, match="cannot be reached") as caught:
        s3.require_bucket(folder)
    assert words in str(caught.value)
    assert "'trial'" in str(caught.value)


def xml(code: str) -> str:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>text</Message></Error>"


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (404, xml("NoSuchBucket"), "no_bucket"),
        (403, xml("AccessDenied"), "access_denied"),
        (403, xml("InvalidAccessKeyId"), "access_denied"),
        (403, xml("SignatureDoesNotMatch"), "access_denied"),
        (403, xml("RequestTimeTooSkewed"), None),
        (400, xml("ExpiredToken"), "access_denied"),
        (401, "", "access_denied"),
        (400, xml("AuthorizationHeaderMalformed"), "wrong_address"),
        (400, xml("InvalidBucketName"), "bucket_name"),
        (405, xml("MethodNotAllowed"), "store_refused"),
        (400, xml("SomeNewCode"), "store_refused"),
        (507, xml("XMinioStorageFull"), None),
        (400, xml("QuotaExceeded"), None),
        (400, xml("RequestTimeout"), None),
        (400, xml("ThrottlingException"), None),
        (409, xml("OperationAborted"), None),
        (429, xml("TooManyRequests"), None),
        (503, xml("SlowDown"), None),
        (503, xml("ServiceUnavailable"), None),
        (500, xml("InternalError"), None),
        (502, "<html>Bad gateway</html>", None),
        (200, "<html><p>The console</html>", None),
    ],
)
def test_an_answer_of_a_store_is_final_or_retried(
    trial: Any, store: str, monkeypatch: pytest.MonkeyPatch, status: int, body: str, code: str | None
) -> None:
    monkeypatch.setattr(Answer, "status", status)
    monkeypatch.setattr(Answer, "body", body.encode())
    folder = trial({"endpoint_url": f"http://{store}"})
    if code is None:
        with pytest.raises(Transient, match="'trial'"):
            s3.listing(folder)
    else:
        with refused(code, "'trial'"):
            s3.listing(folder)


def test_write_access_is_tested_without_an_object(folder: s3.S3Folder, services: Services) -> None:
    s3.require_write_access(folder)
    assert s3.sizes(folder) == {}
    uploads = folder.hook.get_conn().list_multipart_uploads(Bucket=folder.bucket, Prefix=folder.prefix)
    assert uploads.get("Uploads", []) == []


def test_an_account_with_wrong_keys_has_no_write_access(services: Services, trial: Any) -> None:
    with refused("access_denied", "write access"):
        s3.require_write_access(trial({"endpoint_url": services.context.minio_url}, password="wrong"))
