"""Page of the check of the deployment: the last results, and a check by the API server on request."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from airflow_onnx.dag_roles import RELEASING, DagRole, dag_ids
from airflow_onnx.preflight import last_result, table
from airflow_onnx.preflight.checks import Check, State
from airflow_onnx.preflight.deployment import read_deployment
from airflow_onnx.preflight.run import DeploymentReport, Place, run_checks
from airflow_onnx.ui.pages import Templates

log = logging.getLogger(__name__)

# The states of the page's pills. Green, amber and red have the same meaning as for a release.
PILLS = {State.OK: "released", State.WARNING: "warning", State.FAILED: "failed", State.SKIPPED: "skipped"}
# A result of yesterday may be about another deployment.
OLD_AFTER = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectView:
    """The checks of one subject."""

    name: str
    checks: Sequence[Check]

    @property
    def has_problem(self) -> bool:
        """True if a check has failed or has a warning."""
        return any(check.state in (State.FAILED, State.WARNING) for check in self.checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportView:
    """One result: the sentence above it, and the subjects with and without a problem."""

    report: DeploymentReport
    title: str
    summary: str
    problems: Sequence[SubjectView]
    others: Sequence[SubjectView]


class PreflightPage:
    """The routes of the page."""

    def __init__(self, templates: Templates) -> None:
        self._templates = templates
        # Two checks at the same time would restore and delete the same experiment.
        self._running = threading.Lock()

    def router(self) -> APIRouter:
        """Return the routes for the app."""
        router = APIRouter()
        router.add_api_route("/check", self.page, response_model=None)
        router.add_api_route("/check", self.start, methods=["POST"], response_model=None)
        return router

    def page(self, request: Request) -> Response:
        """Return the page with the last results."""
        hidden: set[str] = getattr(request.state, "hidden_dags", set())
        try:
            reports, problem = last_result.stored(), ""
        except Exception as error:  # noqa: BLE001 - a database may raise anything; the page then has its name
            log.warning("The last results of the check cannot be read: %s", type(error).__name__)
            reports, problem = [], "The last results cannot be read from Airflow's database."
        views = [view(report, hidden) for report in reports]
        return self._templates.page(
            request, "preflight_page.html", views=views, problem=problem, pills=PILLS, old_after=OLD_AFTER
        )

    def start(self, request: Request, user: GetUserDep) -> Response:
        """Make the checks of the API server, and store the result.

        A release writes to the same places, so the user needs the right to trigger the DAGs.
        """
        known = dag_ids(*RELEASING, DagRole.WATCH)
        wanted = [dag_id for dag_id in known if _may_trigger(request, user, dag_id)]
        if known and not wanted:
            raise HTTPException(403, "Forbidden")
        if not self._running.acquire(blocking=False):
            raise HTTPException(409, "A check is running. Wait until it has ended.")
        try:
            report = run_checks(read_deployment(wanted), Place.API_SERVER)
            last_result.store(report)
        finally:
            self._running.release()
        return JSONResponse(
            {"state": report.state.value, "summary": table.summary(report), "short": table.short(report)}
        )


def view(report: DeploymentReport, hidden: set[str]) -> ReportView:
    """Return a result for the page, without the checks of DAGs that the user may not read."""
    visible = (check for check in report.checks if not check.dag_ids or set(check.dag_ids) - hidden)
    checks = [_without(check, hidden) for check in visible]
    groups = groupby(checks, key=lambda check: check.subject)
    subjects = [SubjectView(name=name, checks=list(group)) for name, group in groups]
    by_command = report.place is Place.COMMAND
    return ReportView(
        report=report,
        title=f"By the command on {report.host}" if by_command else "By the API server, from this page",
        summary=table.summary(report),
        problems=[one for one in subjects if one.has_problem],
        others=[one for one in subjects if not one.has_problem],
    )


def _without(check: Check, hidden: set[str]) -> Check:
    """Return the check without the ids of DAGs that the user may not read."""
    for dag_id in sorted(hidden, key=len, reverse=True):
        check = check.replace(found=check.found.replace(dag_id, "…"), action=check.action.replace(dag_id, "…"))
    return check


def _may_trigger(request: Request, user: GetUserDep, dag_id: str) -> bool:
    try:
        requires_access_dag("POST", DagAccessEntity.RUN, dag_id)(request, user)
    except HTTPException:
        return False
    return True
