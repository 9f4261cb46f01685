"""The page of the check of the deployment: rights, the stored results, hostile names, and a check on request."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient

from airflow_onnx.preflight.checks import Check, State
from airflow_onnx.preflight.deployment import Deployment
from airflow_onnx.preflight.run import DeploymentReport, Place
from airflow_onnx.ui import preflight_page
from airflow_onnx.ui.app import URL_PREFIX, make_app
from tests.browser.seeding import HOSTILE
from tests.edge.ui.test_pages import client_of

PATH = f"{URL_PREFIX}/check"
JSON = {"Content-Type": "application/json"}


def report(*checks: Check, place: Place = Place.COMMAND) -> DeploymentReport:
    counts = {state.value: sum(one.state is state for one in checks) for state in State}
    return DeploymentReport(
        checked_at=datetime.now(UTC), seconds=1.0, host=HOSTILE, place=place, state=State.FAILED, counts=counts,
        checks=checks,
    )  # fmt: skip


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[DeploymentReport]:
    """The stored results. Tests have no Airflow database."""
    found: list[DeploymentReport] = []
    monkeypatch.setattr(preflight_page.last_result, "stored", lambda: found)
    monkeypatch.setattr(preflight_page.last_result, "store", found.append)
    return found


@pytest.fixture
def reader(results: list[DeploymentReport]) -> Iterator[TestClient]:
    app = make_app()
    for right in (app.state.may_read, app.state.may_read_moves):
        app.dependency_overrides[right] = lambda: None
    with client_of(app) as client:
        yield client


def test_the_page_has_the_last_results_and_no_markup_of_foreign_names(
    reader: TestClient, results: list[DeploymentReport]
) -> None:
    assert "Not checked yet" in reader.get(PATH).text
    fine = Check(id="store.get", subject="Store", state=State.OK, found="71 bytes")
    results.append(
        report(Check(id="store.put", subject=HOSTILE, state=State.FAILED, found=HOSTILE, action="Do it."), fine)
    )
    text = reader.get(PATH).text
    assert HOSTILE not in text
    assert "Do it." in text
    assert "All other checks" in text


def test_a_user_sees_no_check_of_a_hidden_dag() -> None:
    hidden = Check(id="dag.unpaused", subject="DAG secret_dag", state=State.FAILED, found="x", dag_ids=("secret_dag",))
    shared = Check(
        id="pool.exists", subject="Pools", state=State.OK, found="1 of secret_dag", dag_ids=("secret_dag", "mine")
    )
    view = preflight_page.view(report(hidden, shared), {"secret_dag"})
    assert [check.id for subject in (*view.problems, *view.others) for check in subject.checks] == ["pool.exists"]
    assert "secret_dag" not in view.others[0].checks[0].found


def test_a_stranger_may_not_check() -> None:
    with client_of(make_app()) as client:
        assert client.post(PATH, content=b"{}", headers=JSON | {"Accept": "application/json"}).status_code == 401


@pytest.mark.parametrize("allowed", [True, False])
def test_the_request_is_json_and_covers_the_dags_of_the_user(
    results: list[DeploymentReport], monkeypatch: pytest.MonkeyPatch, *, allowed: bool
) -> None:
    from airflow.api_fastapi.core_api.security import get_user

    wanted: list[Any] = []

    def requires(method: str, _entity: Any, dag_id: str) -> Any:
        def check(_request: Any, _user: Any) -> None:
            assert method == "POST"
            if not allowed or dag_id != "release_a":
                raise HTTPException(403, "Forbidden")

        return check

    monkeypatch.setattr(preflight_page, "dag_ids", lambda *_: ["release_a", "release_b"])
    monkeypatch.setattr(preflight_page, "requires_access_dag", requires)
    monkeypatch.setattr(preflight_page, "read_deployment", lambda ids: wanted.append(ids) or Deployment((), ()))
    monkeypatch.setattr(preflight_page, "run_checks", lambda _deployment, place: report(place=place))
    app = make_app()
    for right in (app.state.may_read, app.state.may_read_moves, get_user):
        app.dependency_overrides[right] = lambda: None
    with client_of(app) as client:
        assert client.post(PATH, data={"a": "b"}).status_code == 403
        answer = client.post(PATH, content=b"{}", headers=JSON | {"Accept": "application/json"})
    if not allowed:
        assert (answer.status_code, wanted, results) == (403, [], [])
        return
    assert answer.json()["state"] == "failed"
    assert wanted == [["release_a"]]
    assert [one.place for one in results] == [Place.API_SERVER]
