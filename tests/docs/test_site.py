"""The site of the documentation: a strict build without a network, complete pages, no foreign resource."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Attributes by which a browser fetches something while it shows a page. A plain link is none.
FETCHED = re.compile(r'<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc="([^"]+)"|<link\b[^>]*\bhref="([^"]+)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # A request to another host fails at the proxy, which does not exist.
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_a_page_fetches_nothing_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    fetched = {
        (page.name, link)
        for page in pages
        for found in FETCHED.finditer(page.read_text())
        if (link := found[1] or found[2]) and re.match(r"(https?:)?//", link)
    }
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert fetched == set()
    assert re.findall(r"url\(['\"]?(?:https?:)?//[^)]*", styles) == []


def test_the_files_of_the_root_are_pages(site: Path) -> None:
    expected = {"index.html": "make demo", "changelog.html": "0.2.0", "contributing.html": "add a gate"}
    for page, words in expected.items():
        assert words in (site / page).read_text(), page


def test_readers_can_choose_dark_pictures(site: Path) -> None:
    page = (site / "index.html").read_text()
    assert "released-light.png#only-light" in page
    assert "released-dark.png#only-dark" in page
    assert "<picture" not in page


def test_the_api_pages_have_the_docstrings(site: Path) -> None:
    page = (site / "api" / "dags.html").read_text()
    assert 'id="airflow_onnx.dag.release_dag"' in page
    assert "whose finished runs" not in page
    assert "Links, pages, plan and notes follow it" in page
    # Sources of the site are no pages of it.
    assert not list(site.rglob("*.py.html"))
    assert not (site / "site_pages.py").exists()
