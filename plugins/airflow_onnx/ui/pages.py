"""Pages of releases: the list, a model, a release, and the tab on a DAG run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from airflow_onnx import airflow_urls
from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.ui import airflow_state, numbers, sources, trace_page
from airflow_onnx.ui.airflow_state import AirflowRelease
from airflow_onnx.ui.health import Health
from airflow_onnx.ui.model_view import model_view
from airflow_onnx.ui.release_index import TIMEOUT_S, ReleaseIndex, ReleaseRecord, Snapshot
from airflow_onnx.ui.release_view import dag_run_view, record_of, release_view
from airflow_onnx.ui.states import WORDS, Releases
from airflow_onnx.ui.stored_report import StoredReports, stored_reports
from airflow_onnx.ui.trace_page import trace_view
from airflow_onnx.ui.view import Filter, list_view
from onnx_release.errors import ParameterRefused, Refused, Transient
from onnx_release.records import ReleaseReport
from onnx_release.training_runs import tags
from onnx_release.training_runs.names import validate_model_name, validate_run_id
from onnx_release.training_runs.records import ModelVersionEntry
from onnx_release.training_runs.trace import Trace

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"


class Templates:
    """The page templates. Every text is escaped."""

    def __init__(self) -> None:
        from onnx_release.report.html import environment

        self._env = environment(TEMPLATES)
        filters: dict[str, Any] = {"utc": numbers.utc, "since": numbers.since, "moment": numbers.moment}
        self._env.filters |= filters | {"part": lambda text: quote(str(text), safe="")}

    def page(self, request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """Return a page. `base` is the address of these pages, `airflow` that of Airflow, both without a host."""
        base = str(request.scope.get("root_path", ""))
        airflow = base.removesuffix("/onnx-release")
        text = self._env.get_template(template).render(
            base=base, airflow=airflow, now=datetime.now(UTC), words=WORDS, **context
        )
        return HTMLResponse(text, status_code=status)


class ReleasePages:
    """The routes. They only read: changes go from the browser through Airflow's own API."""

    def __init__(self, templates: Templates, index: ReleaseIndex, health: Health) -> None:
        self._templates, self._index, self._health = templates, index, health

    def router(self, may_read_its_dag: Callable[..., None]) -> APIRouter:
        """Return the routes for the app.

        :param may_read_its_dag: the check of the right to read the DAG runs of the DAG in the query.
        """
        router = APIRouter()
        routes: dict[str, Callable[..., Response]] = {
            "/": self.start,
            "/releases": self.releases,
            "/releases/{run_id}": self.release,
            "/models/{name}": self.model,
            "/models/{name}/compare": self.compare,
            "/models/{name}/versions/{version}/trace": self.trace,
            "/models/{name}/versions/{version}/trace.json": self.trace_json,
        }
        for path, page in routes.items():
            router.add_api_route(path, page, response_model=None)
        router.add_api_route("/run", self.dag_run, response_model=None, dependencies=[Depends(may_read_its_dag)])
        return router

    def start(self, request: Request) -> Response:
        """Redirect to the list."""
        return RedirectResponse(f"{request.scope.get('root_path', '')}/releases")

    def releases(self, request: Request) -> Response:
        """Return the list of releases."""
        snapshot = self._snapshot(request)
        releases = self._releases(request, snapshot)
        return self._templates.page(
            request,
            "list.html",
            view=list_view(snapshot, releases, Filter.parse(request.query_params)),
            snapshot=snapshot,
            is_complete=snapshot.complete_at is not None,
            health=self._health.lines(snapshot, releases.waiting_count()),
        )

    def release(self, request: Request, run_id: str) -> Response:
        """Return the release of a training run, or one attempt of it."""
        snapshot = self._snapshot(request)
        try:
            record = snapshot.of_run(validate_run_id(run_id)) or self._newer(request, run_id, snapshot)
        except ParameterRefused:
            record = None
        if record is None:
            return self._missing(request, "This training run has no release", snapshot)
        return self._release(request, record, snapshot, attempt=request.query_params.get("attempt", "")[:100])

    def _snapshot(self, request: Request) -> Snapshot:
        """Return the releases that the user may see."""
        snapshot = self._index.snapshot()
        if not getattr(request.state, "hidden_dags", ()):
            return snapshot
        return replace(snapshot, records=tuple(one for one in snapshot.records if _may_see(request, one)))

    def _newer(self, request: Request, run_id: str, snapshot: Snapshot) -> ReleaseRecord | None:
        """Return the release of a training run that the index does not have yet."""
        if snapshot.server is None or snapshot.problem:
            return None
        try:
            with MlflowRest(snapshot.server, TIMEOUT_S) as rest:
                run = rest.run(run_id)
        except (Refused, Transient):
            return None
        record = ReleaseRecord.from_run(run, "")
        return record if record.status and _may_see(request, record) else None

    def dag_run(self, request: Request) -> Response:
        """Return the release of a DAG run, for the tab of Airflow's page of the run."""
        dag_id, run_id = (request.query_params.get(name, "")[:250] for name in ("dag_id", "run_id"))
        found = airflow_state.release(dag_id, run_id)
        if found is None or not found.tasks:
            return self._missing(request, "This DAG run is not a release", None)
        snapshot = self._snapshot(request)
        record = record_of(found, snapshot)
        if record is not None:
            url = "" if found.is_active else airflow_urls.dag_run_url(dag_id, run_id)
            return self._release(request, record, snapshot, dag_run=found, dag_run_url=url)
        view = dag_run_view(found, self._releases(request, snapshot), datetime.now(UTC))
        return self._templates.page(request, "release_page.html", view=view, problem=snapshot.problem)

    def _release(
        self, request: Request, record: ReleaseRecord, snapshot: Snapshot, *, attempt: str = "",
        dag_run: AirflowRelease | None = None, dag_run_url: str = "",
    ) -> Response:  # fmt: skip
        releases = self._releases(request, snapshot)
        reports, problem = StoredReports(), snapshot.problem
        if snapshot.server and not problem:
            with MlflowRest(snapshot.server, TIMEOUT_S) as rest:
                reports = stored_reports(
                    rest, record.run_id, record.model_name, precision=record.precision, attempt=attempt,
                    dag_run_url=dag_run_url,
                )  # fmt: skip
        if dag_run is None and not attempt:
            dag_run = self._dag_run_of(request, record)
        view = release_view(record, reports, snapshot, releases, dag_run, datetime.now(UTC), _moves(request))
        return self._templates.page(request, "release_page.html", view=view, problem=problem)

    def model(self, request: Request, name: str) -> Response:
        """Return a registered model."""
        snapshot = self._snapshot(request)
        try:
            validate_model_name(name)
        except ParameterRefused:
            return self._missing(request, "There is no model of this name", snapshot)
        model, versions, problem = None, [], snapshot.problem
        if snapshot.server and not problem:
            try:
                with MlflowRest(snapshot.server, TIMEOUT_S) as rest:
                    model, versions = rest.registered_model(name), rest.model_versions(name)
            except Refused as error:
                # A model whose releases were all refused is not registered.
                problem = "" if error.code == "not_found" else str(error)
            except Transient as error:
                problem = str(error)
        view = model_view(name, model, versions, snapshot, self._releases(request, snapshot), _moves(request))
        if not (view.versions or view.attempts or problem):
            return self._missing(request, "There is no model of this name", snapshot)
        return self._templates.page(request, "model_page.html", view=view, problem=problem)

    def compare(self, request: Request, name: str) -> Response:
        """Return the differences of two versions."""
        from onnx_release.report import comparison as reports

        snapshot = self._snapshot(request)
        chosen = sorted({int(text) for text in request.query_params.getlist("v") if text.isdecimal()})
        names = [f"v{version}" for version in chosen]
        comparison, problem = None, "" if len(chosen) == 2 else "Choose two versions."
        if not problem:
            try:
                before, after = self._reports_of(snapshot, name, chosen)
                speeds = reports.reported_speeds(before, after, chosen[0])
                comparison = reports.compare(before, after, (names[0], names[1]), speeds)
            except (Refused, Transient) as error:
                problem = str(error)
        return self._templates.page(
            request, "compare_page.html", name=name, names=names, comparison=comparison, problem=problem
        )

    def trace(self, request: Request, name: str, version: str) -> Response:
        """Return the origin of a version."""
        found = self._trace(request, name, version)
        if isinstance(found, Trace):
            return self._templates.page(request, "trace_page.html", view=trace_view(found))
        return found

    def trace_json(self, request: Request, name: str, version: str) -> Response:
        """Return the same as JSON, in the form of ``onnx-release trace --json``."""
        found = self._trace(request, name, version)
        return JSONResponse(found.document()) if isinstance(found, Trace) else found

    def _trace(self, request: Request, name: str, version: str) -> Trace | Response:
        """Return the entries of MLflow about a version, or the page of a problem."""
        snapshot, title = self._snapshot(request), "There is no such version"
        if snapshot.server is None or snapshot.problem:
            return self._missing(request, title, snapshot)
        try:
            with MlflowRest(snapshot.server, TIMEOUT_S) as rest:
                found = trace_page.read(rest, validate_model_name(name), version)
        except ParameterRefused:
            return self._missing(request, title, None)
        except (Refused, Transient) as error:
            is_missing = isinstance(error, Refused) and error.code == "not_found"
            return self._missing(request, title, None if is_missing else replace(snapshot, problem=str(error)))
        if not trace_page.may_be_shown(found, getattr(request.state, "hidden_dags", set())):
            return self._missing(request, title, None)
        return found

    def _reports_of(self, snapshot: Snapshot, name: str, versions: list[int]) -> tuple[ReleaseReport, ReleaseReport]:
        validate_model_name(name)
        if snapshot.server is None:
            raise TrackingRefused("MLflow", "cannot be read", snapshot.problem, code="not_found")
        with MlflowRest(snapshot.server, TIMEOUT_S) as rest:
            entries = {one.version: one for one in rest.model_versions(name)}
            return _report_of(rest, name, versions[0], entries), _report_of(rest, name, versions[1], entries)

    def _missing(self, request: Request, title: str, snapshot: Snapshot | None) -> Response:
        if snapshot and snapshot.problem:
            # It may exist.
            title, text, status = "MLflow does not answer", snapshot.problem, 503
        else:
            text, status = "", 404
        return self._templates.page(request, "message.html", status, title=title, text=text, can_read=True)

    def _dag_run_of(self, request: Request, record: ReleaseRecord) -> AirflowRelease | None:
        # Only DAG runs of a DAG whose right was checked.
        dag_id = airflow_urls.dag_id_of(record.dag_run_url)
        if not record.dag_run_id or dag_id not in _release_dags(request):
            return None
        try:
            return airflow_state.release(dag_id, record.dag_run_id)
        except Exception as error:  # noqa: BLE001 - a database may raise anything; the page then has no steps
            log.warning("The page of a release shows no steps: %s", type(error).__name__)
            return None

    def _releases(self, request: Request, snapshot: Snapshot) -> Releases:
        """Return the DAG runs in progress; without MLflow the newest ones in any state."""
        read = airflow_state.newest_releases if snapshot.problem else airflow_state.releases_in_progress
        dag_ids = _release_dags(request)
        try:
            return Releases(read(dag_ids), dag_ids=dag_ids)
        except Exception as error:  # noqa: BLE001 - a database may raise anything; the list then has MLflow's states
            log.warning("The page of releases shows no states of Airflow: %s", type(error).__name__)
            return Releases((), known=False)


def _report_of(rest: MlflowRest, name: str, version: int, entries: Mapping[int, ModelVersionEntry]) -> ReleaseReport:
    """Return the report of a version.

    :raises Refused: if the version does not exist, or if a later release of its training run has replaced the report.
    """
    subject, entry = f"Version {version} of {name!r}", entries.get(version)
    if entry is None or not entry.run_id:
        raise TrackingRefused(subject, "does not exist", "Choose another version.", code="not_found")
    run_id = validate_run_id(entry.run_id)
    stored = stored_reports(rest, run_id, name, precision=entry.tags.get(tags.VERSION_PRECISION, ""))
    if stored.report is None:
        raise TrackingRefused(subject, "has no report", stored.problem, code="not_found")
    sha256 = stored.report.artifact.sha256 if stored.report.artifact else ""
    if sha256 != entry.tags.get(tags.VERSION_SHA256):
        action = "A later release of its training run has replaced it. Choose another version."
        raise TrackingRefused(subject, "has no report in MLflow any more", action, code="not_found")
    return stored.report


def _release_dags(request: Request) -> set[str]:
    """Return the release DAGs that the user may read."""
    found: set[str] = getattr(request.state, "release_dags", set())
    return found


def _may_see(request: Request, record: ReleaseRecord) -> bool:
    """Return True unless the release is that of a DAG without the right. The tag with the DAG is not trusted.

    An author of the tag can show or hide their own release by it, and no other.
    """
    return airflow_urls.dag_id_of(record.dag_run_url) not in getattr(request.state, "hidden_dags", ())


def _moves(request: Request) -> list[AirflowRelease]:
    """Return the moves of aliases that have not ended, none for a user who may not read them."""
    if not (dag_ids := getattr(request.state, "move_dags", ())):
        return []
    try:
        return airflow_state.moves_in_progress(dag_ids)
    except Exception as error:  # noqa: BLE001 - a database may raise anything; the page then has no moves
        log.warning("A page of releases shows no moves of aliases: %s", type(error).__name__)
        return []


def release_pages(templates: Templates) -> ReleasePages:
    """Return the pages of this deployment."""
    return ReleasePages(templates, ReleaseIndex(sources.mlflow_server), Health(sources.store))
