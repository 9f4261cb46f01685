"""The REST client of MLflow: paging and errors, blocking and asynchronous, against a local HTTP server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_onnx.hooks.mlflow_rest import AsyncMlflowRest, MlflowRest
from airflow_onnx.hooks.mlflow_server import MlflowServer
from onnx_release.errors import Transient
from onnx_release.training_runs.server import RunQuery
from tests.refusals import refused

Answer = tuple[int, bytes]
QUERY = RunQuery(experiment_ids=["1"], filter="x = 1", page_size=2)
PAGES = {None: (["a", "b"], "second"), "second": (["c"], "")}


class Answers(BaseHTTPRequestHandler):
    """An HTTP server that answers with the result of a function of the page token."""

    answer: Callable[[str | None], Answer]

    def handle_request(self) -> None:
        """Answer a GET or a POST."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        tokens = parse_qs(urlsplit(self.path).query).get("page_token", [None])
        status, content = type(self).answer(body.get("page_token") or tokens[0])
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = handle_request  # noqa: N815 - names of http.server

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str | None], Answer]], MlflowServer]]:
    started: list[HTTPServer] = []

    def start(answer: Callable[[str | None], Answer]) -> MlflowServer:
        httpd = HTTPServer(("127.0.0.1", 0), type("Handler", (Answers,), {"answer": staticmethod(answer)}))
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        started.append(httpd)
        url = f"http://127.0.0.1:{httpd.server_port}"
        return MlflowServer(conn_id="c", tracking_uri=url, ui_url=url)

    yield start
    for httpd in started:
        httpd.shutdown()
        httpd.server_close()


def runs_page(token: str | None) -> Answer:
    ids, following = PAGES[token]
    runs = [{"info": {"run_id": run_id, "experiment_id": "1", "status": "FINISHED"}} for run_id in ids]
    return 200, json.dumps({"runs": runs, "next_page_token": following}).encode()


def experiments_page(token: str | None) -> Answer:
    ids, following = PAGES[token]
    rows = [{"experiment_id": name, "name": name} for name in ids]
    return 200, json.dumps({"experiments": rows, "next_page_token": following}).encode()


def blocking_run(server: MlflowServer) -> Any:
    with MlflowRest(server) as rest:
        return rest.run("r")


def async_run(server: MlflowServer) -> Any:
    async def call() -> Any:
        async with AsyncMlflowRest(server) as rest:
            return await rest.run("r")

    return asyncio.run(call())


def test_the_blocking_client_reads_all_pages(serve: Any) -> None:
    with MlflowRest(serve(runs_page)) as rest:
        assert [run.run_id for run in rest.runs(QUERY)] == ["a", "b", "c"]
    with MlflowRest(serve(experiments_page)) as rest:
        assert [experiment.name for experiment in rest.experiments()] == ["a", "b", "c"]


def test_the_asynchronous_client_reads_all_experiments_and_one_page_of_runs(serve: Any) -> None:
    async def call() -> tuple[list[str], list[str]]:
        async with AsyncMlflowRest(serve(runs_page)) as rest:
            runs = await rest.first_page(QUERY)
        async with AsyncMlflowRest(serve(experiments_page)) as rest:
            experiments = await rest.experiments()
        return [run.run_id for run in runs], [experiment.name for experiment in experiments]

    assert asyncio.run(call()) == (["a", "b"], ["a", "b", "c"])


@pytest.mark.parametrize("call", [blocking_run, async_run])
@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((401, b"sign in"), "mlflow_permission", "connection 'c'"),
        ((403, b'{"error_code": "OTHER"}'), "mlflow_permission", "connection 'c'"),
        (
            (403, b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'),
            "mlflow_permission",
            "connection 'c'",
        ),
        (
            (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "INVALID_PARAMETER_VALUE: Bad."}'),
            "mlflow_refused",
            "(INVALID_PARAMETER_VALUE): Bad. Check",
        ),
    ],
)
def test_a_wrong_request_is_refused(
    serve: Any, call: Callable[[MlflowServer], Any], answer: Answer, code: str, words: str
) -> None:
    with refused(code, words):
        call(serve(lambda _: answer))


@pytest.mark.parametrize("call", [blocking_run, async_run])
def test_a_missing_run_is_named_and_the_connection_is_not_suspected(
    serve: Any, call: Callable[[MlflowServer], Any]
) -> None:
    body = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Run with id=r not found"}'
    with refused("not_found", "The training run r does not exist") as caught:
        call(serve(lambda _: (404, body)))
    assert "connection" not in str(caught.value)


@pytest.mark.parametrize("call", [blocking_run, async_run])
@pytest.mark.parametrize(
    "answer",
    [
        (500, b"trouble"),
        (503, b"[]"),
        (429, b"{}"),
        (200, b"<html>login</html>"),
        (200, b"[1]"),
        # Two requests inserted the same record at the same time.
        (400, b'{"error_code": "BAD_REQUEST", "message": "(sqlite3.IntegrityError) UNIQUE constraint failed"}'),
    ],
)
def test_an_outage_is_transient(serve: Any, call: Callable[[MlflowServer], Any], answer: Answer) -> None:
    with pytest.raises(Transient):
        call(serve(lambda _: answer))


@pytest.mark.parametrize("call", [blocking_run, async_run])
def test_an_unreachable_server_is_transient(call: Callable[[MlflowServer], Any]) -> None:
    url = "http://127.0.0.1:9"
    with pytest.raises(Transient, match=url):
        call(MlflowServer(conn_id="c", tracking_uri=url, ui_url=url))
