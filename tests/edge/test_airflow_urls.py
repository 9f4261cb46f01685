"""Addresses of pages in Airflow."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_onnx import airflow_urls
from onnx_release.training_runs import tags

DAG = "release & co"
LENGTH = tags.VALUE_MAX_CHARACTERS


@pytest.fixture(autouse=True)
def airflow_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://airflow.test")


def rerun_conf(url: str) -> Any:
    """Return the parameters that the trigger page reads from its address."""
    parts = urlsplit(url)
    assert (parts.scheme, parts.netloc, parts.path) == ("http", "airflow.test", "/onnx-release/trigger")
    query = parse_qs(parts.query, strict_parsing=True)
    assert len(query["dag"]) == 1
    return json.loads(query["conf"][0])


def test_a_dag_run_id_is_quoted() -> None:
    assert airflow_urls.dag_run_url("a", "b c/1") == "http://airflow.test/dags/a/runs/b%20c%2F1"


def test_a_rerun_address_carries_hostile_text_as_data() -> None:
    hostile = {"model_name": '"><script>&conf=%7B', "alias": "ü\n#?"}
    url = airflow_urls.rerun_url(DAG, "r" * 32, hostile, LENGTH)
    assert rerun_conf(url) == {**hostile, "training_run_id": "r" * 32}
    assert parse_qs(urlsplit(url).query)["dag"] == [DAG]


@pytest.mark.parametrize("url", ["", "http://[", "http://a/dags", "javascript:x", "http://a/runs/dags"])
def test_an_address_without_a_dag_has_no_id(url: str) -> None:
    assert airflow_urls.dag_id_of(url) == ""
    assert airflow_urls.dag_id_of(airflow_urls.dag_run_url("a/b c", "r")) == "a/b c"


def test_a_rerun_address_that_does_not_fit_a_tag_omits_the_longest_parameters() -> None:
    kept = {"model_name": "n" * 128, "mae_max": 1e-4}
    long = airflow_urls.rerun_url(DAG, "r" * 32, {"per_output": {"x": "y" * 5000}, **kept}, LENGTH)
    assert len(long) <= LENGTH
    assert rerun_conf(long) == {**kept, "training_run_id": "r" * 32}
    many = airflow_urls.rerun_url(DAG, "r" * 32, {f"p{number}": "v" * 50 for number in range(500)} | kept, LENGTH)
    assert len(many) <= LENGTH
    assert rerun_conf(many)["model_name"] == kept["model_name"]
    long_uri = {"model_uri": "models:/" + "m" * 5000}
    assert rerun_conf(airflow_urls.rerun_url(DAG, "r", long_uri, LENGTH)) == {"training_run_id": "r"}
