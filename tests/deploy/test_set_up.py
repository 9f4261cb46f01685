"""The connections of the deployment: filled in from the environment, and shaped as the embedded stack's are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.container.set_up import CONNECTIONS, filled
from stack.context import Context
from stack.credentials import Credentials
from stack.layout import Layout
from stack.ports import Ports
from stack.setup import connections

FILE: dict[str, dict[str, Any]] = json.loads(CONNECTIONS.read_text())
ENVIRONMENT = {
    "MLFLOW_UI_URL": "http://127.0.0.1:5000",
    "MINIO_CONSOLE_URL": "http://127.0.0.1:9001",
    "RELEASE_S3_SECRET_KEY": 'quotes " and $signs',
    "LOGS_S3_SECRET_KEY": "logs",
}


def test_each_name_becomes_its_value_and_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    found = filled(FILE)
    assert found["minio_default"]["password"] == 'quotes " and $signs'
    assert found["mlflow_default"]["extra"] == {"ui_url": "http://127.0.0.1:5000"}
    assert "${" not in json.dumps(found)


def test_a_missing_value_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELEASE_S3_SECRET_KEY", raising=False)
    with pytest.raises(KeyError, match="RELEASE_S3_SECRET_KEY"):
        filled(FILE["minio_default"])


def test_they_say_of_the_store_what_the_embedded_stack_says(tmp_path: Path) -> None:
    embedded = {
        each["connection_id"]: each for each in connections(Context(Layout(tmp_path), Ports(), Credentials.generate()))
    }
    # Compose signs no release unless its deployment has a key.
    assert set(embedded) - {"signing"} <= set(FILE)
    there = json.loads(embedded["minio_default"]["extra"])
    for name in ("minio_default", "minio_logs"):
        for key in ("config_kwargs", "region_name"):
            assert FILE[name]["extra"][key] == there[key]
