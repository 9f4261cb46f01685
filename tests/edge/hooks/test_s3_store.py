"""The connection type `s3store`: address, client and the Test button, on a real store."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from airflow.api_fastapi.core_api.routes.public import connections as routes
from airflow.sdk import Connection

from airflow_onnx.hooks.s3_store import S3StoreHook, aws_extra
from airflow_onnx.storage import s3
from stack.setup import connections as stack_connections
from tests.edge.conftest import Services
from tests.refusals import refused


def stored() -> dict[str, Any]:
    """Return the store's connection of the local stack."""
    found: dict[str, Any] = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"])
    return found


def set_connection(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_TRIAL", json.dumps(stored() | {"extra": "{}"} | changes))


def test_the_button_in_airflows_list_may_test_every_address_of_the_stack(services: Services) -> None:
    for connection in (one for one in stack_connections(services.context) if one["conn_type"] != "generic"):
        # The list sends an empty text for an unset host, and 0 for an unset port. Airflow refuses a changed address.
        sent = {"host": connection.get("host") or "", "port": int(connection.get("port") or 0)}
        assert all(routes._same_endpoint(sent[key], connection.get(key)) for key in sent), connection


def test_the_test_finds_a_writable_bucket(connections: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__BUCKET", "heimdall-models")
    assert S3StoreHook("minio_default").test_connection()[0]
    # Server, port and keys are enough.
    set_connection(monkeypatch)
    good, message = S3StoreHook("trial").test_connection()
    assert good, message
    assert f"{stored()['host']}:{stored()['port']}" in message


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"password": "wrong"}, "Check the key, the secret"),
        ({"port": 9}, "cannot be reached"),
        ({"host": "", "port": None}, "is not an address"),
        ({"host": "ftp://x"}, "is not an address"),
        ({"extra": "[]"}, "extra"),
    ],
)
def test_the_test_names_the_fault(
    connections: None, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], part: str
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__BUCKET", "heimdall-models")
    set_connection(monkeypatch, **changes)
    good, message = S3StoreHook("trial").test_connection()
    assert not good
    assert part in message
    assert "wrong" not in message.replace("wrong_", "")


def test_a_release_writes_through_such_a_connection(connections: None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_connection(monkeypatch)
    folder = s3.folder_at("trial", "s3://heimdall-models/s3store")
    s3.put_text(folder, "a.json", "{}")
    assert s3.read_text(folder, "a.json") == "{}"
    assert s3.console_url(folder) == f"{stored()['host']}:{stored()['port']}/heimdall-models/s3store/"
    set_connection(monkeypatch, host="minio:9000:1")
    with refused("wrong_address", "'trial'"):
        s3.folder_at("trial", "s3://heimdall-models/s3store")


def test_the_extra_of_the_connection_wins_over_the_defaults() -> None:
    fields: dict[str, Any] = {
        "conn_id": "c",
        "conn_type": "s3store",
        "host": "https://s3.example.org/gate",
        "port": 443,
    }
    extra = aws_extra(Connection(**fields, extra='{"region_name": "", "console_url": "https://c"}'))
    assert (extra["endpoint_url"], extra["region_name"]) == ("https://s3.example.org:443/gate", "us-east-1")
    assert aws_extra(Connection(**fields, extra='{"config_kwargs": {}}'))["config_kwargs"] == {}
