"""Tags and description of a release on its training run in MLflow. `report_files` has the artifacts and metrics."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_onnx import airflow_urls, outcome_log, step_times
from airflow_onnx.errors import TrackingRefused
from airflow_onnx.events import release_end
from airflow_onnx.links import ReportLink, RerunLink, TrainingRunLink
from airflow_onnx.tracking import model_registry, report_files, run_description
from airflow_onnx.tracking.run_description import Result, described
from onnx_release.errors import Refused, Transient
from onnx_release.records import ReleaseReport, TrainedModel
from onnx_release.records.artifact import Precision
from onnx_release.text import shorten
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_onnx.hooks.mlflow import MlflowHook
    from airflow_onnx.task_outcome import TaskOutcome

log = logging.getLogger(__name__)

WAITING = "waiting"
"""The status of a release that waits for an approval."""

# A run without a record. The task that reads the run names the reason.
_NO_RUN = ("not_found", "run_deleted")
# Deleted when an attempt begins and no release is current.
_OF_A_RELEASE = (
    tags.VERSION,
    tags.ALIAS,
    tags.ALIAS_NOTE,
    tags.S3_URI,
    tags.WALL_S,
    tags.PRECISION,
    tags.LATENCY_VERDICT,
    tags.WARNING,
)
# Those that a release of reduced precision has beside those of the exact one.
_OF_A_REDUCED_RELEASE = (tags.VERSION, tags.ALIAS, tags.ALIAS_NOTE, tags.S3_URI, tags.LATENCY_VERDICT, tags.WARNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedVersion:
    """The registered version of a successful release.

    :param alias: the alias of the version, empty if it stays at another one for the reason in `alias_note`.
    :param wall_s: seconds of the release's tasks without their time in queues, None if Airflow does not return them.
    """

    version: int
    alias: str
    alias_note: str = ""
    s3_uri: str
    wall_s: float | None = None


class LoggedRefusal(NamedTuple):
    """The report of a refused release, and the addresses of the links of its task."""

    report: ReleaseReport
    link_urls: dict[str, str]


def log_start(hook: MlflowHook, context: Context, training_run_id: str) -> None:
    """Set the tags of a release that begins: its DAG run and, unless a release is current, the status ``running``.

    A run that MLflow refuses to tag gets a line in the task's log. The task itself then refuses the run.
    """
    try:
        found = _attempt_tags(context, training_run_id, "running")
        before = dict(_run(hook, training_run_id).data.tags)
        if not _has_current_release(hook, training_run_id, before):
            found |= _emptied(before) | _dag_run_tags(context)
            found |= {tags.STATUS: "running", tags.HEADLINE: "", tags.REASON: "", tags.REASON_CODE: ""}
            found |= _description(before, found, Result(headline="A release is in progress."), is_current=True)
        _set_tags(hook, training_run_id, found, before)
    except Refused as failure:
        if failure.code not in _NO_RUN:
            log.warning("The start of the release is not recorded in MLflow: %s", failure)


def log_waiting(hook: MlflowHook, context: Context, training_run_id: str) -> None:
    """Set the tags of a release that waits for an approval.

    :raises Transient: if MLflow does not answer.
    """
    found = _attempt_tags(context, training_run_id, WAITING, "for an approval in Airflow")
    before = dict(_run(hook, training_run_id).data.tags)
    if not _has_current_release(hook, training_run_id, before):
        found |= {tags.STATUS: WAITING}
        result = Result(headline="The release waits for an approval in Airflow.")
        found |= _description(before, found, result, is_current=True)
    _set_tags(hook, training_run_id, found, before)


def log_report(
    hook: MlflowHook,
    context: Context,
    report: ReleaseReport,
    *,
    released: ReleasedVersion | None = None,
    release_dag_id: str = "",
) -> str:
    """Log the report, metrics, tags and description of one attempt on its training run.

    Each attempt's report is added to ``history``. The report beside it, the metrics, and the tags without
    ``last_attempt`` describe the current release. A refusal after a successful release does not change them, because
    the version and its alias still exist. A refusal under another model name writes into that model's folder.

    A release of reduced precision has its own folder, metrics and tags below the name of its precision. The tags
    without it describe the exact release if there is one.

    :param released: the registered version, None for a refused or accepted attempt without a version.
    :param release_dag_id: the DAG of the release, for a refusal by the watch before a DAG run of the release.
    :return: the address of the attempt's report.
    """
    run_id = report.trained_model.training_run_id
    run = _run(hook, run_id)
    before = dict(run.data.tags)
    reduced = report_files.reduced_precision(report) if report.status != "refused" else None
    # A refused or reduced release leaves the tags of the current exact release unchanged.
    unchanged = (report.status == "refused" or reduced is not None) and _has_current_release(hook, run_id, before)
    status = "released" if released else report.status
    reason = "; ".join(report.reasons)
    sha256 = report.artifact.sha256 if report.artifact else ""
    name = report.trained_model.model_name or ""
    version_tags = _version_tags(report, released) if released else {}
    found = _attempt_tags(context, run_id, status, reason, release_dag_id)
    if not unchanged:
        found |= _emptied(before) | _dag_run_tags(context) | ({tags.DAG_RUN_ID: ""} if release_dag_id else {})
        found |= {tags.STATUS: status, tags.HEADLINE: report.headline}
        found |= {tags.REASON: reason, tags.REASON_CODE: report.reason_code or ""}
        found |= {tags.REGISTERED_MODEL: name, tags.SHA256: sha256} | version_tags
    if reduced:
        of_reduced = {name: version_tags.get(name, "") for name in _OF_A_REDUCED_RELEASE} | {tags.SHA256: sha256}
        named = {tags.of_precision(name, reduced): text for name, text in of_reduced.items()}
        found |= {name: text for name, text in named.items() if text or before.get(name)}
    attempt = report_files.log_attempt(hook, report)
    is_current = not unchanged or reduced or before.get(tags.REGISTERED_MODEL) != name
    if is_current:
        report_files.log_current(hook, report, with_metrics=not unchanged or reduced is not None)
    path = (
        report_files.report_path(report.trained_model, report_files.reduced_precision(report))
        if is_current
        else attempt
    )
    links = {"Report": hook.server.artifact_url(run.info.experiment_id, run_id, path)}
    if released:
        links[f"Version {released.version} of {name}"] = hook.server.version_url(name, released.version)
    result = Result(headline=report.headline, next_step=report.next_step, links=links)
    found |= _description(before, found, result, is_current=not unchanged)
    # The tags last: a reader who sees them finds the files that they name.
    _set_tags(hook, run_id, found, before)
    return links["Report"]


def log_refusal(
    hook: MlflowHook, context: Context, refusal: Refused, *, trained_model: TrainedModel, **parts: Any
) -> LoggedRefusal:
    """Log the report of a refused release on its training run, and leave its summary in XCom.

    A report that cannot be logged gets a line in the task's log: the task must fail with the refusal itself.

    :param parts: the records that exist so far, by their names in `ReleaseReport`.
    """
    report = refused_report(context, refusal, trained_model, **parts)
    report_url = None
    try:
        report_url = log_report(hook, context, report)
    except (Refused, Transient) as failure:
        if not isinstance(failure, Refused) or failure.code not in _NO_RUN:
            log.warning("The refusal is not recorded in MLflow: %s", failure)
    release_end.leave_summary(context, report, report_url or "")
    return LoggedRefusal(report, link_urls(hook, context, trained_model, report_url))


def refused_report(context: Context, refusal: Refused, trained_model: TrainedModel, **parts: Any) -> ReleaseReport:
    """Return the report of a refused release. The arguments are those of `log_refusal`."""
    from onnx_release.report.release_report import build_report

    found = {name: parts.get(name) for name in ("artifact", "check", "benchmark")}
    report = build_report(trained_model, **found, refusal=refusal)
    # The watch refuses before there is a DAG run of the release.
    steps = step_times.step_times(context) if "ti" in context else ()
    return report.replace(dag_run_url=_dag_run_url(context), steps=steps)


def log_end(hook: MlflowHook, context: Context, training_run_id: str, outcome: TaskOutcome) -> None:
    """Set the tags of a release that ended without a version, unless its task has done it.

    A current release of the run stays: then only the tags of the newest attempt change.

    :raises Transient: if MLflow does not answer.
    """
    before = dict(_run(hook, training_run_id).data.tags)
    is_recorded = before.get(tags.LAST_ATTEMPT, "").startswith(f"{outcome.status} ")
    if outcome.status == "refused" and is_recorded and before.get(tags.LAST_ATTEMPT_URL) == _dag_run_url(context):
        return
    found = _attempt_tags(context, training_run_id, outcome.status, outcome.reason)
    is_current = not _has_current_release(hook, training_run_id, before)
    if is_current:
        found |= _emptied(before) | _dag_run_tags(context)
        found |= {tags.STATUS: outcome.status, tags.HEADLINE: outcome.headline}
        found |= {tags.REASON: outcome.reason, tags.REASON_CODE: outcome.code}
    result = Result(headline=shorten(outcome.headline), next_step=shorten(outcome.next_step))
    found |= _description(before, found, result, is_current=is_current)
    _set_tags(hook, training_run_id, found, before)


def log_released(hook: MlflowHook, context: Context, training_run_id: str, version: Any) -> None:
    """Set the tags of a release whose tasks could not record it. Its report is beside the objects of the version.

    :param version: MLflow's version, which has an alias.
    :raises Transient: if MLflow does not answer.
    """
    before = dict(_run(hook, training_run_id).data.tags)
    found = _attempt_tags(context, training_run_id, "released")
    precision = version.tags.get(tags.VERSION_PRECISION) or str(Precision.EXACT)
    of_version = {
        tags.VERSION: str(version.version),
        tags.ALIAS: ", ".join(sorted(version.aliases)),
        tags.ALIAS_NOTE: "the promotion did not end",
        tags.S3_URI: version.source,
        tags.SHA256: version.tags[tags.VERSION_SHA256],
    }
    is_current = precision == Precision.EXACT or not _has_current_release(hook, training_run_id, before)
    headline = f"Released: version {version.version} of {version.name}."
    if is_current:
        found |= _emptied(before) | _dag_run_tags(context) | of_version
        found |= {tags.STATUS: "released", tags.HEADLINE: headline, tags.REASON: "", tags.REASON_CODE: ""}
        found |= {tags.REGISTERED_MODEL: version.name, tags.PRECISION: precision}
    if precision != Precision.EXACT:
        found |= {tags.of_precision(name, precision): text for name, text in of_version.items()}
    links = {f"Version {version.version}": hook.server.version_url(version.name, int(version.version))}
    found |= _description(before, found, Result(headline=headline, links=links), is_current=is_current)
    _set_tags(hook, training_run_id, found, before)


def link_urls(
    hook: MlflowHook, context: Context, trained_model: TrainedModel, report_url: str | None = None
) -> dict[str, str]:
    """Return the addresses of the links that each task of a release has, by their names.

    :param report_url: the address of the report, None for the one that the release will have.
    """
    run_id, experiment_id = trained_model.training_run_id, trained_model.experiment_id
    current = hook.server.artifact_url(experiment_id, run_id, report_files.report_path(trained_model))
    return {
        TrainingRunLink.name: hook.server.run_url(experiment_id, run_id),
        ReportLink.name: report_url or current,
        RerunLink.name: outcome_log.rerun_link(context),
    }


def _description(before: dict[str, str], found: dict[str, str], result: Result, *, is_current: bool) -> dict[str, str]:
    """Return the tag of the run's description, with links to the trigger page and the DAG run of the attempt."""
    links = {"Release again": found[tags.RERUN_URL], "Airflow run": found[tags.LAST_ATTEMPT_URL], **result.links}
    complete = Result(headline=result.headline, next_step=result.next_step, links=links)
    return {run_description.TAG: described(before.get(run_description.TAG, ""), complete, is_current=is_current)}


def _set_tags(hook: MlflowHook, run_id: str, found: dict[str, str], before: dict[str, str]) -> None:
    """Set the tags, and delete those of an earlier attempt that have no value now."""
    values = {name: text for name, text in found.items() if text or name in before}
    described_text = {name: values.pop(name) for name in (run_description.TAG,) if name in values}
    hook.set_tags(run_id, tags.shortened(values) | described_text)


def _run(hook: MlflowHook, training_run_id: str) -> Any:
    subject = f"The training run {training_run_id}"
    with hook.mlflow_errors(subject):
        run = hook.client.get_run(training_run_id)
    if run.info.lifecycle_stage == "deleted":
        raise TrackingRefused(subject, "was deleted", "Restore it in MLflow.", code="run_deleted")
    return run


def _has_current_release(hook: MlflowHook, training_run_id: str, found: dict[str, str]) -> bool:
    """Return True if the run's tags name an exact version that the registry has and that was made from this run.

    The tags alone could name a version that was deleted later. The registry alone also has versions of releases that
    failed before the alias was moved.
    """
    if found.get(tags.PRECISION) not in (None, "", Precision.EXACT):
        return False
    name, version = found.get(tags.REGISTERED_MODEL), found.get(tags.VERSION)
    return bool(name and version) and model_registry.is_release_of(hook, str(name), str(version), training_run_id)


def _emptied(found: dict[str, str]) -> dict[str, str]:
    return {name: "" for name in _OF_A_RELEASE if found.get(name)}


def _version_tags(report: ReleaseReport, released: ReleasedVersion) -> dict[str, str]:
    from onnx_release.report.gates import warning

    precision = report.artifact.precision if report.artifact else Precision.EXACT
    found = {
        tags.VERSION: str(released.version),
        tags.ALIAS: released.alias,
        tags.S3_URI: released.s3_uri,
        tags.PRECISION: str(precision),
    }
    if released.alias_note:
        found[tags.ALIAS_NOTE] = released.alias_note
    if warned := warning(report):
        found[tags.WARNING] = warned
    if report.benchmark and report.benchmark.latency:
        found[tags.LATENCY_VERDICT] = report.benchmark.latency.verdict
    if released.wall_s is not None:
        found[tags.WALL_S] = f"{released.wall_s:.1f}"
    return found


def _attempt_tags(
    context: Context, training_run_id: str, status: str, reason: str = "", release_dag_id: str = ""
) -> dict[str, str]:
    at = tags.now()
    attempt = f"{status} {at}"
    again = outcome_log.rerun_link(context, training_run_id, tags.VALUE_MAX_CHARACTERS, release_dag_id)
    return {
        tags.ATTEMPTED_AT: at,
        tags.LAST_ATTEMPT: f"{attempt}: {reason}" if reason else attempt,
        tags.LAST_ATTEMPT_URL: _dag_run_url(context),
        tags.RERUN_URL: again,
    }


def _dag_run_tags(context: Context) -> dict[str, str]:
    return {tags.DAG_RUN_URL: _dag_run_url(context), tags.DAG_RUN_ID: context["dag_run"].run_id}


def _dag_run_url(context: Context) -> str:
    run: Any = context["dag_run"]
    return airflow_urls.dag_run_url(run.dag_id, run.run_id)
