"""The pages of releases over a real MLflow server: rights, hostile names, outages, and the time of the list."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from fastapi import FastAPI, HTTPException, Request
from fastapi.testclient import TestClient

from airflow_onnx.hooks.mlflow_server import MlflowServer
from airflow_onnx.ui import release_index
from airflow_onnx.ui.app import HEADERS, URL_PREFIX, make_app
from airflow_onnx.ui.pages import TEMPLATES
from airflow_onnx.ui.release_index import ReleaseIndex
from onnx_release.records import AliasMove
from tests.browser.seeding import HOSTILE, NAN, Seeder
from tests.edge.conftest import Services

HTML = {"Accept": "text/html"}


def client_of(app: FastAPI) -> TestClient:
    server = FastAPI()
    server.mount(URL_PREFIX, app)
    return TestClient(server, headers=HTML, follow_redirects=False)


@pytest.fixture(scope="module")
def seeded(services: Services) -> Seeder:
    seeder = Seeder(services.context.mlflow_url)
    seeder.experiment("pages")
    seeder.released("run-17", "pages-onnx", ago=timedelta(hours=3), aliases=("candidate",))
    seeder.refused("run-9", "pages-gru", ago=timedelta(days=1))
    seeder.refused(HOSTILE, "pages-odd", ago=timedelta(minutes=1), reason=f'{HOSTILE} "quoted" & <b>bold</b>')
    return seeder


@pytest.fixture(scope="module")
def reader(connections: None, seeded: Seeder) -> Iterator[TestClient]:
    app = make_app()
    for check in (app.state.may_read, app.state.may_read_moves):
        app.dependency_overrides[check] = lambda: None
    with client_of(app) as client:
        eventually(client, f"{URL_PREFIX}/releases", "@candidate")
        yield client


def test_the_list_has_states_reasons_and_figures(reader: TestClient) -> None:
    answer = reader.get(f"{URL_PREFIX}/releases?experiment=pages")
    assert answer.status_code == 200
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    text = answer.text
    assert NAN in text
    assert "@candidate" in text
    assert "2.16x" in text
    assert re.search(r"All <b>3</b>", text)


def test_no_hostile_text_becomes_markup(reader: TestClient) -> None:
    text = reader.get(f"{URL_PREFIX}/releases?q={HOSTILE}&experiment=pages").text
    assert HOSTILE not in text
    assert "<b>bold</b>" not in text
    assert "&lt;script&gt;" in text
    # The address in the tag leads to another host; of it only the parameters are used.
    assert "evil.test" not in text


def test_no_template_marks_text_as_safe_or_holds_code() -> None:
    for path in TEMPLATES.rglob("*.html"):
        assert (
            re.findall(r"\|\s*safe\b|<script(?![^>]*\bsrc=)|\son\w+=|style=|<style|autoescape", path.read_text()) == []
        )


def test_the_start_page_is_the_list(reader: TestClient) -> None:
    answer = reader.get(f"{URL_PREFIX}/")
    assert (answer.status_code, answer.headers["location"]) == (307, f"{URL_PREFIX}/releases")


@pytest.mark.parametrize("path", ["/releases", "/trigger", "/"])
def test_a_user_without_the_right_gets_a_page_that_names_it(path: str) -> None:
    def forbid() -> None:
        raise HTTPException(403, "Forbidden")

    app = make_app()
    app.dependency_overrides[app.state.may_read] = forbid
    with client_of(app) as client:
        answer = client.get(URL_PREFIX + path)
    assert answer.status_code == 403
    assert "read the DAG runs of a release DAG" in answer.text


@pytest.mark.parametrize("path", ["/releases", "/releases?state=refused", "/"])
def test_a_stranger_is_sent_to_the_login(path: str) -> None:
    with client_of(make_app()) as client:
        answer = client.get(URL_PREFIX + path)
    assert answer.status_code == 307
    assert answer.headers["location"].startswith("/api/v2/auth/login?")


def test_an_mlflow_that_does_not_answer_is_named_and_costs_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", '{"conn_type": "mlflow", "host": "http://127.0.0.1:9"}')
    app = make_app()
    for check in (app.state.may_read, app.state.may_read_moves):
        app.dependency_overrides[check] = lambda: None
    with client_of(app) as client:
        answer = client.get(f"{URL_PREFIX}/releases")
        missing = client.get(f"{URL_PREFIX}/releases/{'0' * 32}")
        compared = client.get(f"{URL_PREFIX}/models/net/compare?v=1&v=2")
    assert answer.status_code == 200
    assert "MLflow does not answer." in answer.text
    assert (missing.status_code, compared.status_code) == (503, 200)
    assert "MLflow does not answer" in missing.text
    assert "does not exist" not in compared.text


def test_a_refresh_reads_the_changed_releases_only(seeded: Seeder) -> None:
    index = ReleaseIndex(lambda: MlflowServer(conn_id="c", tracking_uri=seeded.url, ui_url=seeded.url))
    before = index.snapshot()
    run_id = seeded.refused("run-late", "pages-late", ago=timedelta(0))
    deadline = time.monotonic() + 20
    while index.snapshot().of_run(run_id) is None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert {record.run_id for record in before.records} <= {record.run_id for record in index.snapshot().records}


def test_more_news_than_the_newest_pages_have_are_all_read(seeded: Seeder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_index, "_PAGE_SIZE", 2)
    monkeypatch.setattr(release_index, "_NEWS_MAX", 1)
    index = ReleaseIndex(lambda: MlflowServer(conn_id="c", tracking_uri=seeded.url, ui_url=seeded.url))
    while index.snapshot().complete_at is None:
        time.sleep(0.1)
    new = {seeded.refused(f"news-{number}", "pages-news", ago=timedelta(0)) for number in range(6)}
    deadline = time.monotonic() + 120
    while not new <= {record.run_id for record in index.snapshot().records}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert index.snapshot().complete_at is not None


def test_the_page_of_a_release_has_its_report_the_way_to_load_it_and_links_to_known_hosts_only(
    reader: TestClient, seeded: Seeder
) -> None:
    run_id = seeded.released("run-18", "pages-net", ago=timedelta(hours=1), aliases=("candidate",))
    text = eventually(reader, f"{URL_PREFIX}/releases/{run_id}", "version 1")
    assert "models:/pages-net/1" in text
    assert "Gates: measured values against their limits" in text
    assert "Released: fp32, 113 MB" in text
    hosts = set(re.findall(r'href="(https?://[^/"]+)', text))
    assert hosts == {seeded.url}


def test_the_page_of_a_model_compares_two_versions_in_words(reader: TestClient, seeded: Seeder) -> None:
    seeded.released("run-1", "pages-pair", ago=timedelta(hours=2), speedup=2.0, size_bytes=95_000_000)
    seeded.released("run-2", "pages-pair", ago=timedelta(hours=1), speedup=2.1)
    text = eventually(reader, f"{URL_PREFIX}/models/pages-pair", "run-2")
    assert "Speedup by version: 2x in version 1, 2.1x in version 2." in text
    assert "Is v2 faster than v1?" in text
    compared = reader.get(f"{URL_PREFIX}/models/pages-pair/compare?v=1&v=2").text
    assert "No difference in speed is shown: v2 is 1.05 times as fast" in compared
    assert "95 MB" in compared
    assert "+19 %" in compared
    assert "Choose two versions." in reader.get(f"{URL_PREFIX}/models/pages-pair/compare?v=1").text
    assert "does not exist" in reader.get(f"{URL_PREFIX}/models/pages-pair/compare?v=1&v=9").text


def test_a_version_that_an_alias_has_left_is_rolled_back_in_list_and_model(reader: TestClient, seeded: Seeder) -> None:
    seeded.released("run-1", "pages-back", ago=timedelta(hours=2), aliases=("champion",))
    run_id = seeded.released("run-2", "pages-back", ago=timedelta(hours=1))
    back = AliasMove(alias="champion", from_version=2, to_version=1, by="anna", at="2026-11-01T10:00:00Z", why=HOSTILE)
    seeded.moved("pages-back", back.replace(from_version=1, to_version=2, why="better"), back)
    reason = "@champion went back to v1, by anna: &lt;script&gt;"
    text = eventually(reader, f"{URL_PREFIX}/releases?state=rolled_back", reason)
    assert HOSTILE not in text
    assert reason in reader.get(f"{URL_PREFIX}/releases/{run_id}").text
    page = reader.get(f"{URL_PREFIX}/models/pages-back").text
    assert re.search(r"<b>v2</b></a>.*?rolled_back", page, re.DOTALL)


def test_the_origin_of_a_version_is_a_page_and_the_same_as_json(reader: TestClient, seeded: Seeder) -> None:
    run_id = seeded.released(HOSTILE, "pages-trace", ago=timedelta(hours=1), aliases=("candidate",))
    seeded.logged(run_id, params={"lr": HOSTILE, "password": "of-the-script"}, metrics={"val mae": 0.25})
    move = AliasMove(alias="candidate", from_version=None, to_version=1, by=HOSTILE, at=HOSTILE, why=HOSTILE)
    seeded.moved("pages-trace", move)
    page = f"{URL_PREFIX}/models/pages-trace/versions/1/trace"
    text = eventually(reader, page, "Origin of version 1")
    assert HOSTILE not in text
    for part in (run_id, "Gates", "Parameters of the training", "val mae", f'href="{page}.json"'):
        assert part in text
    found = reader.get(f"{page}.json").json()
    assert (found["model"], found["version"], found["aliases"]) == ("pages-trace", 1, ["candidate"])
    assert found["training_run"]["params"] == {"lr": HOSTILE}
    assert [one["why"] for one in found["moves"]] == [HOSTILE]
    assert "of-the-script" not in text + str(found)
    for name in (f"releases/{run_id}", "models/pages-trace"):
        assert f'href="{page}"' in eventually(reader, f"{URL_PREFIX}/{name}", "Origin")
    for wrong in ("2", "0", "x", "1%2F..", "9" * 400, "%D9%A1"):
        for end in ("trace", "trace.json"):
            assert reader.get(f"{URL_PREFIX}/models/pages-trace/versions/{wrong}/{end}").status_code == 404
    assert reader.get(f"{URL_PREFIX}/models/..%2Fx/versions/1/trace").status_code == 404


def test_the_origin_of_a_release_of_a_hidden_dag_is_missing(
    connections: None, reader: TestClient, seeded: Seeder
) -> None:
    seeded.released("run-1", "pages-hidden", ago=timedelta(hours=1))

    def hide(request: Request) -> None:
        request.state.hidden_dags = {"release_onnx"}

    app = make_app()
    app.dependency_overrides |= {app.state.may_read: hide, app.state.may_read_moves: lambda: None}
    with client_of(app) as client:
        eventually(client, f"{URL_PREFIX}/releases", "ONNX releases")
        for end in ("trace", "trace.json"):
            path = f"{URL_PREFIX}/models/pages-hidden/versions/1/{end}"
            assert (reader.get(path).status_code, client.get(path).status_code) == (200, 404)


def test_a_retired_release_has_its_record_and_no_way_to_load_it(reader: TestClient, seeded: Seeder) -> None:
    run_id = seeded.released("run-1", "pages-retired", ago=timedelta(hours=1))
    seeded.tag(run_id, status="retired", headline=f"Retired: version 1 of pages-retired, by anna: {HOSTILE}")
    text = eventually(reader, f"{URL_PREFIX}/releases/{run_id}", "version 1 of pages-retired, by anna: &lt;script&gt;")
    assert 'class="pill retired"' in text
    assert "load_model" not in text
    assert "Release again" in text
    assert HOSTILE not in eventually(reader, f"{URL_PREFIX}/releases?state=retired", "by anna")


@pytest.mark.parametrize("path", ["/releases/nothing", "/releases/..%2Fx", "/models/none", "/models/%3Cb%3E"])
def test_a_missing_release_or_model_is_named(reader: TestClient, path: str) -> None:
    answer = reader.get(URL_PREFIX + path)
    assert answer.status_code == 404
    assert "<b>" not in answer.text


@pytest.mark.parametrize("content", ["x" * 2_100_000, "[", '{"schema_version": 9}', "[" * 100_000])
def test_a_report_that_is_not_one_is_named_on_the_page(reader: TestClient, seeded: Seeder, content: str) -> None:
    run_id = seeded.refused("run-bad", "pages-bad", ago=timedelta(0))
    seeded.file(run_id, "onnx_release/pages-bad/report.json", content)
    text = eventually(reader, f"{URL_PREFIX}/releases/{run_id}", "run-bad")
    assert "report" in text
    assert NAN in text


def eventually(client: TestClient, path: str, text: str) -> str:
    """Return the page once it has the text: the index is some seconds old."""
    deadline = time.monotonic() + 20
    while text not in (found := client.get(path).text):
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
    return found
