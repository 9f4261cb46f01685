"""Rights to the pages with the roles of Airflow's SimpleAuthManager: every address, and requests of other sites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow import settings
from airflow.api_fastapi import app as airflow_app
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models import import_all_models
from airflow.models.base import Base
from airflow.models.dag import DagModel, DagTag
from airflow.models.dagbundle import DagBundleModel
from airflow.utils.session import create_session
from fastapi.testclient import TestClient
from sqlalchemy import create_engine
from sqlalchemy.orm import scoped_session, sessionmaker

from airflow_onnx.dag_roles import DagRole
from airflow_onnx.preflight.deployment import Deployment
from airflow_onnx.ui import preflight_page
from airflow_onnx.ui.app import STATIC, URL_PREFIX, make_app
from tests.edge.ui.test_pages import client_of
from tests.edge.ui.test_preflight_page import report

JSON = {"Content-Type": "application/json", "Accept": "application/json"}
# A new address needs a line: the lowest role that may use it.
LOWEST_ROLE = {
    "GET /": "viewer",
    "GET /releases": "viewer",
    "GET /releases/{run_id}": "viewer",
    "GET /models/{name}": "viewer",
    "GET /models/{name}/compare": "viewer",
    "GET /models/{name}/versions/{version}/trace": "viewer",
    "GET /models/{name}/versions/{version}/trace.json": "viewer",
    "GET /run": "viewer",
    "GET /trigger": "viewer",
    "GET /check": "viewer",
    "POST /check": "user",
}
ROLES = ("", "viewer", "user", "op", "admin")


class Callers:
    """A client with the pages, and a token for each role."""

    def __init__(self, client: TestClient, manager: SimpleAuthManager) -> None:
        self.client = client
        self.tokens = {
            role: manager.generate_jwt(SimpleAuthManagerUser(username=f"a {role}", role=role or None)) for role in ROLES
        }

    def status(self, role: str | None, endpoint: str, **headers: str) -> int:
        method, _, path = endpoint.partition(" ")
        path = URL_PREFIX + path.format(run_id="0" * 32, name="net", version=1)
        if role is not None:
            headers["Authorization"] = f"Bearer {self.tokens[role]}"
        query = "?dag_id=release_a&run_id=none"
        return self.client.request(method, path + query, headers=JSON | headers, content=b"{}").status_code


@pytest.fixture
def callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callers]:
    engine = create_engine(f"sqlite:///{tmp_path / 'airflow.db'}")
    import_all_models()
    Base.metadata.create_all(engine)
    monkeypatch.setattr(settings, "engine", engine)
    monkeypatch.setattr(settings, "Session", scoped_session(sessionmaker(bind=engine, expire_on_commit=False)))
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", '{"conn_type": "mlflow", "host": "http://127.0.0.1:9"}')
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "a secret of this test " * 4)
    with create_session() as session:
        session.add(DagBundleModel(name="dags"))
        session.flush()
        session.add(DagModel(dag_id="release_a", bundle_name="dags", is_stale=False))
        session.add(DagTag(name=DagRole.RELEASE, dag_id="release_a"))
    monkeypatch.setattr(preflight_page, "read_deployment", lambda _ids: Deployment((), ()))
    monkeypatch.setattr(preflight_page, "run_checks", lambda _deployment, place: report(place=place))
    monkeypatch.setattr(preflight_page.last_result, "store", lambda _report: None)
    manager = SimpleAuthManager()
    monkeypatch.setattr(airflow_app._AuthManagerState, "instance", manager)
    with client_of(make_app()) as client:
        yield Callers(client, manager)


def endpoints() -> set[str]:
    """Return every method and path of the app, apart from the files without data."""
    files = {f"/{path.name}" for path in STATIC.iterdir()} | {"/release.css"}
    routes = [route for route in make_app().routes if route.path not in files]
    return {f"{method} {route.path}" for route in routes for method in route.methods}


def test_each_address_has_its_lowest_role(callers: Callers) -> None:
    assert endpoints() == set(LOWEST_ROLE)
    for endpoint, lowest in LOWEST_ROLE.items():
        assert callers.status(None, endpoint) == 401, endpoint
        for role in ROLES:
            denied = callers.status(role, endpoint) in (401, 403)
            assert denied is (ROLES.index(role) < ROLES.index(lowest)), (endpoint, role)


def test_a_forged_token_and_the_files_without_a_token_are_refused(callers: Callers) -> None:
    assert callers.status(None, "GET /releases", Authorization="Bearer a.b.c") == 403
    assert callers.status(None, "GET /page.css") == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=application/json"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
    ],
)
def test_another_site_cannot_change_anything_with_the_users_cookie(callers: Callers, headers: dict[str, str]) -> None:
    changing = [endpoint for endpoint in endpoints() if not endpoint.startswith(("GET", "HEAD"))]
    assert changing
    for endpoint in changing:
        assert callers.status("admin", endpoint, **headers) == 403, endpoint
        assert callers.status("admin", endpoint, Origin="http://testserver") == 200
