"""Pages of the documentation: links, questions, and lists that must be complete."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_onnx import defaults
from airflow_onnx.provider import get_provider_info
from onnx_release.report.metrics import release_metrics
from onnx_release.report.release_report import build_report
from stack.context import Context
from stack.credentials import Credentials
from stack.layout import Layout
from stack.ports import Ports
from stack.setup import client_environment
from tests.core import records
from tests.docs.blocks import PAGES, ROOT


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_make_target_is_there(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"`(?:[A-Z_]+=\S+ )*make ([a-z-]+)", page.read_text())
    assert set(named) - set(targets) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text) + re.findall(r' src(?:set)?="([^"]+)"', text)
    missing = [link for link in links if not page.parent.joinpath(link).exists()]
    assert missing == []


def test_the_pictures_need_chromium_and_the_message_names_its_package() -> None:
    argv, environment = [sys.executable, "-m", "docs.screenshots"], {**os.environ, "CHROMIUM": "/missing/chromium"}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "/missing/chromium is missing. Install it (apt-get install chromium)" in done.stderr


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_a_page_opens_with_its_question(page: Path) -> None:
    title, empty, question, *_ = page.read_text().splitlines()
    assert title.startswith("# ")
    assert empty == ""
    assert question.endswith("?")


def test_the_clients_variables_are_those_of_the_stack(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "first-release.md").read_text()
    block = page.partition("A client needs the packages")[2].split("```")[1]
    context = Context(Layout(tmp_path), Ports(), Credentials.generate())
    expected = {name for name in client_environment(context) if not name.startswith("AIRFLOW_")}
    assert set(re.findall(r"(\w+)=", block)) == expected


@pytest.mark.parametrize("dag_id", ["release_onnx", "watch_training"])
def test_the_parameters_page_lists_every_parameter(dag_id: str) -> None:
    params = runpy.run_path(str(ROOT / "dags" / f"{dag_id}.py"))["dag"].params
    page = (ROOT / "docs" / "parameters.md").read_text()
    section = page.split(f"## `{dag_id}`\n")[1].split("\n## ")[0]
    rows = "\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", rows)) == set(params)


def test_the_parameters_page_names_the_defaults() -> None:
    page = (ROOT / "docs" / "parameters.md").read_text()
    assert f"`{defaults.ALIAS}`" in page


def test_the_operations_page_names_every_option() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    options = get_provider_info()["config"]["onnx_release"]["options"]
    assert [name for name in options if name.startswith("watch_") and f"`{name}`" not in page] == []


def test_the_pages_from_the_code_are_up_to_date() -> None:
    for name in ("options", "tags"):
        page = runpy.run_path(str(ROOT / "docs" / f"{name}.py"))["page"]
        assert (ROOT / "docs" / f"{name}.md").read_text() == page(), "run make generated"


def test_the_page_of_tags_has_every_metric() -> None:
    page = (ROOT / "docs" / "tags.md").read_text()
    report = build_report(records.TRAINING, records.artifact(), records.check(), records.benchmark())
    for name in release_metrics(report):
        last = name.rsplit("/", 1)[1].removeprefix("reference_").removeprefix("candidate_")
        assert f"`{last}`" in page or f"/{last}`" in page, name
