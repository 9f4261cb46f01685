"""Credentials of a connection: sent to that server only, and shown nowhere."""

from __future__ import annotations

import base64
import os
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from airflow.sdk import Connection

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_auth import PROVIDER_NAME
from airflow_onnx.hooks.mlflow_server import MlflowServer
from tests.refusals import refused


class Recorder(BaseHTTPRequestHandler):
    """An MLflow server without experiments that records the Authorization headers."""

    seen: list[str | None]

    def answer(self) -> None:
        """Answer any request with an empty object."""
        type(self).seen.append(self.headers.get("Authorization"))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = answer  # noqa: N815 - names of http.server

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[str | None]]]:
    handler = type("Handler", (Recorder,), {"seen": []})
    httpd = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", handler.seen
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def hook_for(connection: Connection) -> MlflowHook:
    hook = MlflowHook(connection.conn_id)
    hook.server = MlflowServer.from_connection(connection)
    return hook


def test_user_and_password_are_sent_to_their_server_only(server: tuple[str, list[str | None]]) -> None:
    url, seen = server
    connection = Connection(conn_id="c", conn_type="mlflow", host=url, login="ann", password="se:cret")
    hook = hook_for(connection)
    assert hook.test_connection() == (True, f"MLflow at {url} answers.")
    assert seen == ["Basic " + base64.b64encode(b"ann:se:cret").decode()]
    assert "se:cret" not in repr(hook.server)
    assert not [name for name, text in os.environ.items() if "se:cret" in text]


def test_a_token_is_used_instead_of_a_password(server: tuple[str, list[str | None]]) -> None:
    url, seen = server
    connection = Connection(
        conn_id="c", conn_type="mlflow", host=url, login="a", password="b", extra='{"token": "t0k"}'
    )
    assert hook_for(connection).test_connection()[0]
    assert seen == ["Bearer t0k"]


def test_another_server_gets_no_credentials(server: tuple[str, list[str | None]]) -> None:
    url, seen = server
    hook = hook_for(Connection(conn_id="c", conn_type="mlflow", host="http://127.0.0.1:9", login="a", password="b"))
    hook.activate()
    import requests

    from airflow_onnx.hooks.mlflow_auth import ConnectionAuth

    requests.get(url, auth=ConnectionAuth(), timeout=5)
    assert seen == [None]


@pytest.mark.parametrize(
    ("host", "schema", "port", "expected"),
    [
        ("https://m.example.org/", None, None, "https://m.example.org"),
        ("m.example.org", "https", 8443, "https://m.example.org:8443"),
        ("http://m:5000", None, 1234, "http://m:5000"),
        ("m", None, 5000, "http://m:5000"),
    ],
)
def test_addresses(host: str, schema: str | None, port: int | None, expected: str) -> None:
    connection = Connection(conn_id="c", conn_type="mlflow", host=host, schema=schema, port=port)
    assert MlflowServer.from_connection(connection).tracking_uri == expected


@pytest.mark.parametrize("host", ["", "ftp://m", "https://u:p@m.example.org", "file:///etc"])
def test_unusable_addresses_are_refused_without_showing_them(host: str) -> None:
    with refused("mlflow_address", "connection 'c'") as caught:
        MlflowServer.from_connection(Connection(conn_id="c", conn_type="mlflow", host=host))
    assert "u:p" not in str(caught.value)


def test_the_connection_test_names_an_unreachable_server() -> None:
    good, message = hook_for(Connection(conn_id="c", conn_type="mlflow", host="http://127.0.0.1:9")).test_connection()
    assert not good
    assert "http://127.0.0.1:9" in message


def test_the_entry_point_of_the_wheel_names_the_auth_provider() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["mlflow.request_auth_provider"]
    provider = EntryPoint(PROVIDER_NAME, points[PROVIDER_NAME], "mlflow.request_auth_provider").load()
    assert provider().get_name() == PROVIDER_NAME
