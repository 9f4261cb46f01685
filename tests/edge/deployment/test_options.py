"""Options: their readers, their page and their defaults."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from airflow_onnx.dag import release_dag, watch_dag
from airflow_onnx.deployment import settings
from airflow_onnx.deployment.options import OPTIONS
from tests.refusals import refused

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


@pytest.mark.parametrize(("value", "number"), [("0", 0), ("1999", 1999), ("4294967294", 4294967294)])
def test_the_account_of_a_pickle_is_a_number(monkeypatch: pytest.MonkeyPatch, value: str, number: int) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__PICKLE_USER", value)
    assert settings.pickle_user() == number


@pytest.mark.parametrize("value", ["nobody", "-1", "1.5", "4294967295"])
def test_an_account_that_is_none_of_the_kernel_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__PICKLE_USER", value)
    with refused("wrong_option", "pickle_user", value):
        settings.pickle_user()


def test_no_default_of_the_package_names_a_company_or_the_reference_model() -> None:
    code = [path for folder in ("plugins", "include/onnx_release", "dags") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in code if re.search("heimdall|acme", path.read_text())] == []
