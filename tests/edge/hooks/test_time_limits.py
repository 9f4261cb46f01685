"""Time limit of every remote call, against a server that accepts connections and never answers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator

import pytest

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import AsyncMlflowRest, MlflowRest
from airflow_onnx.storage import s3
from onnx_release.errors import Transient

RUN = "a" * 32


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connections to a server that never answers, and a limit of a second. An endless call would end no test."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        extra = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
        store = {"conn_type": "s3store", "host": address, "login": "a", "password": "b", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": address}))
        monkeypatch.setenv("AIRFLOW_CONN_MINIO_DEFAULT", json.dumps(store))
        monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__REQUEST_TIMEOUT_S", "1")
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        yield


def _rest() -> None:
    with MlflowRest(MlflowHook().server) as rest:
        rest.run(RUN)


def _triggerer() -> None:
    async def run() -> None:
        async with AsyncMlflowRest(MlflowHook().server) as rest:
            await rest.run(RUN)

    asyncio.run(run())


def _client() -> None:
    MlflowHook().set_tags(RUN, {"a": "b"})


def _store() -> None:
    s3.sizes(s3.folder_at("minio_default", "s3://models/a"))


@pytest.mark.parametrize("call", [_rest, _triggerer, _client, _store])
def test_a_call_to_a_silent_server_ends_at_the_limit_and_is_repeated(silent: None, call: Callable[[], None]) -> None:
    with pytest.raises(Transient, match=r"(?i)time"):
        call()
