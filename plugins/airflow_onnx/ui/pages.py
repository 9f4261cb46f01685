"""Pages of releases: the list, a model, a release, and the tab on a DAG run."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from airflow_onnx.dag_runs import RELEASE_DAG_ID
from airflow_onnx.ui import airflow_state, numbers, sources
from airflow_onnx.ui.health import Health
from airflow_onnx.ui.release_index import ReleaseIndex, Snapshot
from airflow_onnx.ui.states import WORDS, Releases
from airflow_onnx.ui.view import Filter, list_view

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"


class Templates:
    """The page templates. Every text is escaped."""

    def __init__(self) -> None:
        self._env = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._env.filters |= {
            "part": lambda text: quote(str(text), safe=""),
            "utc": numbers.utc,
            "since": numbers.since,
        }

    def page(self, request: Request, name: str, status: int = 200, **context: Any) -> HTMLResponse:
        """Return a page. `base` is the address of these pages, `airflow` that of Airflow, both without a host."""
        base = str(request.scope.get("root_path", ""))
        airflow = base.removesuffix("/onnx-release")
        text = self._env.get_template(name).render(
            base=base, airflow=airflow, now=datetime.now(UTC), dag_id=RELEASE_DAG_ID, words=WORDS, **context
        )
        return HTMLResponse(text, status_code=status)


class ReleasePages:
    """The routes. They only read: changes go from the browser through Airflow's own API."""

    def __init__(self, templates: Templates, index: ReleaseIndex, health: Health) -> None:
        self._templates, self._index, self._health = templates, index, health

    def router(self) -> APIRouter:
        """Return the routes for the app."""
        router = APIRouter()
        for path, page in {"/": self.start, "/releases": self.list}.items():
            router.add_api_route(path, page, response_model=None, include_in_schema=False)
        return router

    def start(self, request: Request) -> Response:
        """Redirect to the list."""
        return RedirectResponse(f"{request.scope.get('root_path', '')}/releases")

    def list(self, request: Request) -> Response:
        """Return the list of releases."""
        snapshot = self._index.snapshot()
        releases = self._releases(snapshot)
        return self._templates.page(
            request,
            "list.html",
            view=list_view(snapshot, releases, Filter.parse(request.query_params)),
            snapshot=snapshot,
            is_complete=snapshot.complete_at is not None,
            health=self._health.lines(snapshot, releases.waiting_count()),
        )

    def _releases(self, snapshot: Snapshot) -> Releases:
        """Return the DAG runs in progress; without MLflow the newest ones in any state."""
        read = airflow_state.newest_releases if snapshot.problem else airflow_state.releases_in_progress
        try:
            return Releases(read())
        except Exception as error:  # noqa: BLE001 - a database may raise anything; the list then has MLflow's states
            log.warning("The page of releases shows no states of Airflow: %s", type(error).__name__)
            return Releases((), known=False)


def release_pages(templates: Templates) -> ReleasePages:
    """Return the pages of this deployment."""
    return ReleasePages(templates, ReleaseIndex(sources.mlflow_server), Health(sources.store))
