"""View model of one release: header, steps, report, attempts and links."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

from airflow_onnx.airflow_urls import dag_id_of
from airflow_onnx.hooks.mlflow_server import MlflowServer
from airflow_onnx.ui.airflow_state import AirflowRelease
from airflow_onnx.ui.model_view import MoveView, moves_of, proposed_version
from airflow_onnx.ui.release_index import ReleaseRecord, Snapshot
from airflow_onnx.ui.states import Releases, state_of
from airflow_onnx.ui.stored_report import StoredReports
from airflow_onnx.ui.view import Row, StepView, row_of, row_of_dag_run, steps_of
from onnx_release.records import ReleaseReport

_HTTP = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link out of the pages. `kind` is ``new`` for a new tab or ``top`` for Airflow's own pages."""

    text: str
    address: str
    kind: str = "new"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveButton:
    """A button that opens the dialog of a move with an alias and a version."""

    alias: str
    version: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseView:
    """One release.

    :param row: the release as the list shows it.
    :param report: the report of the release or of one attempt.
    :param sentence: the result, the reason or the present step if there is no report to show it.
    :param is_live: True while the release is in progress.
    :param approval: the DAG run that waits for an approval, else None.
    """

    row: Row
    run_id: str
    report: ReleaseReport | None
    reports: StoredReports
    sentence: str
    steps: tuple[StepView, ...]
    links: tuple[Link, ...]
    snippet: str
    sha256: str
    s3_uri: str
    is_live: bool
    approval: AirflowRelease | None = None
    moving: tuple[MoveView, ...] = ()
    moves: tuple[MoveButton, ...] = ()
    alias_choices: tuple[tuple[str, int], ...] = ()
    version_choices: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """The heading of the page."""
        return f"version {self.row.version}" if self.row.version else self.row.run_name or self.run_id


def release_view(
    record: ReleaseRecord,
    reports: StoredReports,
    snapshot: Snapshot,
    releases: Releases,
    dag_run: AirflowRelease | None,
    now: datetime,
    moves_now: Sequence[AirflowRelease] = (),
) -> ReleaseView:
    """Return the view of the release of a training run.

    :param dag_run: the DAG run in Airflow whose steps are shown.
    :param moves_now: the DAG runs that move an alias of any model.
    """
    row = row_of(record, state_of(record, releases, snapshot, now), snapshot, releases, now)
    is_live = row.state in ("running", "waiting")
    report = reports.report
    # A release in progress shows its steps; the report of an earlier attempt would be taken for its result.
    is_outdated = is_live and record.status != "released" and not reports.shown
    # The page has its own link to the DAG run: the address in the report is not trusted.
    report = None if is_outdated or report is None else report.replace(dag_run_url=None)
    is_released = bool(row.version)
    aliases = snapshot.aliases.get(record.model_name, {})
    of_model = (one.version for one in snapshot.records if one.model_name == record.model_name)
    versions = tuple(sorted({int(version) for version in of_model if version.isdecimal()}, reverse=True))
    return ReleaseView(
        row=row,
        run_id=record.run_id,
        report=report,
        reports=reports,
        sentence=row.text if report is None or is_live or row.state in ("rolled_back", "retired") else "",
        steps=steps_of(dag_run, now) if dag_run and not (report and report.steps and not is_live) else (),
        links=links(record, reports, snapshot.server),
        snippet=f'mlflow.pyfunc.load_model("models:/{record.model_name}/{record.version}")' if is_released else "",
        sha256=record.sha256 if is_released else "",
        s3_uri=record.s3_uri if is_released else "",
        is_live=is_live,
        approval=dag_run if dag_run and dag_run.waits_for_approval else None,
        moving=moves_of(record.model_name, moves_now),
        moves=_moves(record, aliases, versions) if is_released else (),
        alias_choices=tuple(sorted(aliases.items())),
        version_choices=versions,
    )


def _moves(record: ReleaseRecord, aliases: Mapping[str, int], versions: Sequence[int]) -> tuple[MoveButton, ...]:
    if not record.version.isdecimal() or len(versions) < 2:
        return ()
    number, found = int(record.version), []
    for alias, version in sorted(aliases.items()):
        if version != number:
            found.append(MoveButton(alias=alias, version=number, text=f"Move @{alias} here…"))
        elif (other := proposed_version(version, versions)) < version:
            found.append(MoveButton(alias=alias, version=other, text=f"Roll @{alias} back to v{other}…"))
    return tuple(found)


def dag_run_view(dag_run: AirflowRelease, releases: Releases, now: datetime) -> ReleaseView:
    """Return the view of a DAG run whose training run has no tags yet."""
    state = releases.progress(dag_run, now).state if dag_run.is_active else "failed"
    state = "released" if dag_run.state == "success" else state
    row = row_of_dag_run(dag_run, state, releases, now)
    return ReleaseView(
        row=row,
        run_id=dag_run.training_run_id,
        report=None,
        reports=StoredReports(),
        sentence=row.text,
        steps=steps_of(dag_run, now),
        approval=dag_run if dag_run.waits_for_approval else None,
        links=(),
        snippet="",
        sha256="",
        s3_uri="",
        is_live=dag_run.is_active,
    )


def record_of(dag_run: AirflowRelease, snapshot: Snapshot) -> ReleaseRecord | None:
    """Return the release that a DAG run belongs to, by its training run or by the tags with its address."""
    if record := snapshot.of_run(dag_run.training_run_id):
        return record
    address = f"/dags/{quote(dag_run.dag_id, safe='')}/runs/{quote(dag_run.dag_run_id, safe='')}"
    return next(
        (one for one in snapshot.records if address in (_path(one.dag_run_url), _path(one.last_attempt_url))), None
    )


def _path(address: str) -> str:
    # The address of Airflow may have a path of its own before it.
    at = address.find("/dags/")
    return address[at:] if at >= 0 else ""


def links(record: ReleaseRecord, reports: StoredReports, server: MlflowServer | None) -> tuple[Link, ...]:
    """Return the links to MLflow and to the DAG run. Only addresses of the connection and of Airflow are used."""
    found = []
    if server and _HTTP.match(server.ui_url):
        run = server.run_url(record.experiment_id, record.run_id)
        found.append(Link(text="Training run", address=run))
        if record.version.isdecimal() and record.model_name:
            found.append(Link(text="Model version", address=server.version_url(record.model_name, int(record.version))))
        if reports.path:
            found.append(Link(text="Report in MLflow", address=f"{run}/artifacts/{quote(reports.path)}"))
    dag_id = dag_id_of(record.dag_run_url)
    if dag_id and record.dag_run_id:
        address = f"/dags/{quote(dag_id, safe='')}/runs/{quote(record.dag_run_id, safe='')}"
        found.append(Link(text="DAG run", address=address, kind="top"))
    return tuple(found)
