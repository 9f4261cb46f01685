"""The trigger page: who may see it, what its headers allow, and that it stays what it says it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from airflow.api_fastapi.core_api.security import get_user
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from airflow_onnx import airflow_urls
from airflow_onnx.plugin import AirflowOnnxPlugin
from airflow_onnx.ui.app import STATIC, URL_PREFIX, login_address, make_app

REPO = Path(__file__).resolve().parents[3]
PAGE = f"{URL_PREFIX}/trigger?conf=%7B%22training_run_id%22%3A%22abc%22%7D"


def served(app: object) -> FastAPI:
    server = FastAPI()
    server.mount(URL_PREFIX, app)  # type: ignore[arg-type]
    return server


@pytest.fixture
def stranger() -> Iterator[TestClient]:
    """A client that is not signed in, against the app as the plugin hands it to Airflow."""
    (entry,) = AirflowOnnxPlugin.fastapi_apps
    assert entry["url_prefix"] == URL_PREFIX
    with TestClient(served(entry["app"]), follow_redirects=False) as client:
        yield client


@pytest.fixture
def user() -> Iterator[TestClient]:
    """A client that Airflow's own check lets pass."""
    app = make_app()
    app.dependency_overrides[get_user] = lambda: "somebody"
    for check in (app.state.may_read, app.state.may_read_moves):
        app.dependency_overrides[check] = lambda: None
    with TestClient(served(app)) as client:
        yield client


def test_the_address_in_the_tag_is_the_pages() -> None:
    assert urlsplit(airflow_urls.rerun_url("release", "abc", {}, 4000)).path.endswith(f"{URL_PREFIX}/trigger")


def test_a_browser_that_is_not_signed_in_is_sent_to_the_login_and_back(stranger: TestClient) -> None:
    answer = stranger.get(PAGE, headers={"Accept": "text/html"})
    assert answer.status_code == 307
    target = urlsplit(answer.headers["location"])
    assert target.path == "/api/v2/auth/login"
    assert parse_qs(target.query)["next"] == [f"http://testserver{PAGE}"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_browser_with_a_cookie_that_is_worth_nothing_is_sent_to_the_login(status: int) -> None:
    def refuse() -> None:
        raise HTTPException(status, "Token Expired" if status == 401 else "Invalid JWT token")

    app = make_app()
    app.dependency_overrides[get_user] = refuse
    with TestClient(served(app), follow_redirects=False) as client:
        page = client.get(PAGE, headers={"Accept": "text/html"})
        assert page.status_code == 307
        assert page.headers["location"].startswith("/api/v2/auth/login?next=")
        assert client.get(PAGE).status_code == status


def test_the_login_is_below_the_path_that_airflow_is_served_at() -> None:
    page = "https://example.org/flows/onnx-release/trigger?conf=%7B%7D"
    address = login_address({"root_path": f"/flows{URL_PREFIX}"}, page)
    assert address.startswith("/flows/api/v2/auth/login?")
    assert parse_qs(urlsplit(address).query)["next"] == [page]


@pytest.mark.parametrize("path", ["/trigger", "/trigger.js", "/trigger.css"])
def test_anything_else_that_is_not_signed_in_gets_401(stranger: TestClient, path: str) -> None:
    assert stranger.get(URL_PREFIX + path).status_code == 401


@pytest.mark.parametrize(
    ("path", "kind"), [("/trigger", "text/html"), ("/trigger.js", "javascript"), ("/trigger.css", "text/css")]
)
def test_a_user_gets_the_page_and_its_files(user: TestClient, path: str, kind: str) -> None:
    answer = user.get(URL_PREFIX + path)
    assert answer.status_code == 200
    assert kind in answer.headers["content-type"]
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("path", ["/nothing", "/../plugin.py", "/app.py"])
def test_no_other_file_is_served(user: TestClient, path: str) -> None:
    assert user.get(URL_PREFIX + path).status_code == 404


def test_the_page_triggers_on_a_click_only(user: TestClient) -> None:
    assert user.post(f"{URL_PREFIX}/trigger", json={}).status_code == 405


def test_no_script_or_style_stands_in_the_page_and_nothing_is_set_as_markup() -> None:
    page, script = (STATIC / "trigger.html").read_text(), (STATIC / "trigger.js").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|\son\w+=|style=|<style", page) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script) == []


def test_no_process_but_the_api_server_pays_for_the_pages(tmp_path: Path) -> None:
    code = "import sys, airflow_onnx.plugin; print([name for name in ('fastapi', 'starlette') if name in sys.modules])"
    env = os.environ | {"PYTHONPATH": f"{REPO / 'include'}:{REPO / 'plugins'}", "AIRFLOW_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip().endswith("[]")
