"""Reports of a release, read from the artifacts of its training run. Their content is not trusted."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_onnx.hooks.mlflow_rest import MlflowRest
from onnx_release.errors import ParameterRefused, RecordRefused, Refused, ReportRefused, Transient
from onnx_release.records import ReleaseReport
from onnx_release.text import shorten
from onnx_release.training_runs import tags
from onnx_release.training_runs.names import validate_model_name

REPORT_BYTES_MAX = 2_000_000
ATTEMPTS_MAX = 50
# The names that `tracking.run_log` gives to the reports of attempts.
_ATTEMPT = re.compile(r"(\d{8}T\d{6}Z)-(accepted|refused)-([0-9a-f]{8})\.json")
_UNNAMED = "unnamed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The report of one attempt among the run's artifacts."""

    file: str
    at: datetime
    status: str

    @classmethod
    def parse(cls, file: str) -> Attempt | None:
        """Read the name of a report, or return None for another name."""
        found = _ATTEMPT.fullmatch(file)
        if not found:
            return None
        try:
            at = datetime.strptime(found[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        except ValueError:
            return None
        return cls(file=file, at=at, status=found[2])

    def is_of(self, dag_run_url: str) -> bool:
        """Return True for the report of a DAG run."""
        digest = hashlib.sha256(f"{dag_run_url}\0{self.status}".encode()).hexdigest()
        return self.file.endswith(f"-{digest[:8]}.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReports:
    """Report of a release, and the attempts before it, the newest first.

    :param problem: the reason why there is no report.
    """

    report: ReleaseReport | None = None
    attempts: tuple[Attempt, ...] = ()
    shown: Attempt | None = None
    path: str = ""
    problem: str = ""


def stored_reports(
    rest: MlflowRest, run_id: str, model_name: str, *, precision: str = "", attempt: str = "", dag_run_url: str = ""
) -> StoredReports:
    """Return the report of a release and the list of its attempts.

    :param run_id: a validated run id.
    :param attempt: the file of one attempt; empty for the current release.
    :param dag_run_url: the DAG run whose attempt is wanted; empty for the current release.
    """
    try:
        folder = f"{tags.ROOT}/{validate_model_name(model_name or _UNNAMED)}"
    except ParameterRefused as error:
        return StoredReports(problem=str(error))
    attempts = _attempts(rest, run_id, folder)
    shown = next((one for one in attempts if one.file == attempt or (dag_run_url and one.is_of(dag_run_url))), None)
    below = f"{precision}/" if precision not in ("", "exact") else ""
    path = f"{folder}/history/{shown.file}" if shown else f"{folder}/{below}report.json"
    if dag_run_url and not shown:
        return StoredReports(attempts=attempts, problem="This DAG run has logged no report.")
    try:
        return StoredReports(report=read_report(rest, run_id, path), attempts=attempts, shown=shown, path=path)
    except (Refused, Transient) as error:
        # MLflow's own page shows a report that this page refuses. It has the error of a fault for a missing file.
        exists = isinstance(error, Refused) and error.code in ("file_too_large", "unreadable_report")
        path = path if exists else ""
        return StoredReports(attempts=attempts, shown=shown, path=path, problem=str(error))


def read_report(rest: MlflowRest, run_id: str, path: str) -> ReleaseReport:
    """Return a report among the artifacts of a run.

    :raises Refused: if it does not exist, is too large, or is not a report.
    :raises Transient: if MLflow does not answer.
    """
    content = rest.run_file(run_id, path, REPORT_BYTES_MAX)
    try:
        return ReleaseReport.from_dict(json.loads(content))
    except (RecordRefused, ValueError, TypeError, RecursionError) as error:
        raise ReportRefused(
            f"The report {path}",
            f"cannot be read: {shorten(error, 200)}",
            "Open it in MLflow.",
            code="unreadable_report",
        ) from error


def _attempts(rest: MlflowRest, run_id: str, folder: str) -> tuple[Attempt, ...]:
    try:
        files = rest.run_files(run_id, f"{folder}/history")
    except (Refused, Transient):
        return ()
    found = (Attempt.parse(str(file.get("path", "")).rpartition("/")[2]) for file in files)
    return tuple(sorted((one for one in found if one), key=lambda one: one.file, reverse=True)[:ATTEMPTS_MAX])
