"""Options: their readers, their page and their defaults."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from airflow_onnx.dag import release_dag, watch_dag
from airflow_onnx.deployment import settings
from airflow_onnx.deployment.options import OPTIONS

ROOT = Path(__file__).parents[3]


def test_the_page_of_options_is_that_of_the_code() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "options.py"))["page"]
    assert (ROOT / "docs" / "options.md").read_text() == page(), "run make generated"


def test_each_option_is_read_and_its_argument_exists() -> None:
    assert [name for name in OPTIONS if not hasattr(settings, name)] == []
    parameters = {*release_dag("a").params, *watch_dag("b", release_dag_id="a").params, "placement", "cron", "poll_s"}
    assert {option.argument for option in OPTIONS.values() if option.argument} <= parameters


@pytest.mark.parametrize("option", OPTIONS)
def test_an_empty_value_means_not_set(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    reader = getattr(settings, option)
    monkeypatch.delenv(f"AIRFLOW__ONNX_RELEASE__{option.upper()}", raising=False)
    unset = reader()
    monkeypatch.setenv(f"AIRFLOW__ONNX_RELEASE__{option.upper()}", "")
    assert reader() == unset


def test_no_default_of_the_package_names_a_company_or_the_reference_model() -> None:
    code = [path for folder in ("plugins", "include/onnx_release", "dags") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in code if re.search("heimdall|acme", path.read_text())] == []
