"""What a release leaves on its training run in MLflow: the report, its figures, and tags that say what became of it."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_onnx import validation
from airflow_onnx.deployment import settings
from airflow_onnx.operators.acceptance import Judged, require_accepted
from airflow_onnx.tracking import model_registry
from onnx_release.errors import Refused, Transient
from onnx_release.records import ReleaseReport, TrainedModel

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_onnx.hooks.mlflow import MlflowHook

log = logging.getLogger(__name__)

TAG = "onnx_release"
# MLflow refuses longer tag values on runs; the whole text is in the report.
TAG_MAX_CHARACTERS = 4000
HISTORY = "history"
REPRODUCTION = "reproduction"
# Written when a release has succeeded; see operators/promote.py.
OF_A_RELEASE = ("version", "alias", "s3_uri", "wall_s", "precision")
# What is said of a release of reduced precision besides, each with the precision before it: ``int8.version``.
OF_A_VARIANT = ("version", "alias", "s3_uri")
# See ui/app.py.
TRIGGER_PAGE = "/onnx-release/trigger"


def dag_run_url(context: Context) -> str:
    """Return the address of the DAG run's page, or its bare id where Airflow's own address is not configured."""
    run: Any = context["dag_run"]
    path = f"/dags/{quote(run.dag_id, safe='')}/runs/{quote(run.run_id, safe='')}"
    return settings.airflow_url() + path


def rerun_url(training_run_id: str, conf: dict[str, Any]) -> str:
    """Return the address of the trigger page, filled in for another release of the run with these parameters.

    A release that was asked for by a model URI is asked for by it again. The address fits a tag: of parameters that
    are too long for that, the longest are left out.
    """
    asked: dict[str, Any] = {"model_uri": conf["model_uri"]} if conf.get("model_uri") else {}
    if not asked or len(_trigger_page(asked)) > TAG_MAX_CHARACTERS:
        asked = {"training_run_id": training_run_id}
    others = {name: value for name, value in conf.items() if name not in ("model_uri", "training_run_id")}
    # The name first: a repeated release must not land under another model.
    for name in sorted(others, key=lambda one: (one != "model_name", len(json.dumps(others[one])), one)):
        more = {**asked, name: others[name]}
        if len(_trigger_page(more)) <= TAG_MAX_CHARACTERS:
            asked = more
    return _trigger_page(asked)


def _trigger_page(conf: dict[str, Any]) -> str:
    return f"{settings.airflow_url()}{TRIGGER_PAGE}?conf={quote(json.dumps(conf, sort_keys=True), safe='')}"


def started(hook: MlflowHook, context: Context, training_run_id: str) -> None:
    """Write on the training run which DAG run has taken it up; a run that cannot take tags gets a line in the log."""
    try:
        tags = _attempt(context, training_run_id, "running")
        before = _tags_before(hook, training_run_id)
        if not _release_stands(hook, training_run_id, before):
            tags |= _cleared(before) | _page(context) | {"status": "running", "reason": ""}
        hook.set_tags(training_run_id, _tags(tags))
    except Refused as failure:
        # What is wrong with the run, the task will say itself; a deleted run, for one, takes no tags.
        log.warning("The release is not on record in MLflow: %s", failure)


def leave(hook: MlflowHook, context: Context, report: ReleaseReport, **tags: str) -> None:
    """Log what an attempt has come to, as artifacts, metrics and tags of the training run.

    Each attempt's report is kept below ``history``. What lies beside it, the metrics, and the tags without
    ``last_attempt`` say what is true of the run: a release that is refused after another has succeeded, say by
    stricter limits, changes none of them, as the version and its alias are still there. If it was to be another
    model, its own folder says that it was refused.

    A release of reduced precision has a folder, metrics and tags of its own, all under its precision's name. The tags
    without it speak of the exact release where there is one.
    """
    run_id = report.trained_model.training_run_id
    before = _tags_before(hook, run_id)
    sha256 = report.artifact.sha256 if report.artifact else ""
    variant = _variant(report)
    released = report.status != "refused"
    stands = (bool(variant) or not released) and _release_stands(hook, run_id, before)
    reason = "; ".join(report.reasons)
    outcome = _attempt(context, run_id, report.status, reason)
    if not stands:
        outcome |= _cleared(before) | _page(context)
        outcome |= {"status": report.status, "reason": reason, "model_name": report.model_name, "sha256": sha256}
        outcome |= tags
    if variant and released:
        of_variant = {name: tags[name] for name in OF_A_VARIANT if name in tags} | {"sha256": sha256}
        outcome |= {f"{variant}.{name}": text for name, text in of_variant.items()}
    _keep(hook, report)
    own_folder = variant and released
    if not stands or own_folder or before.get(f"{TAG}.model_name") != report.model_name:
        _put_on_top(hook, report, with_metrics=not stands or bool(own_folder))
    # Last: whoever reads the tags finds what they speak of.
    hook.set_tags(run_id, _tags(outcome))


def _variant(report: ReleaseReport) -> str:
    """Return the reduced precision that a report is about, or an empty string."""
    precision = report.artifact.precision if report.artifact else validation.EXACT
    return "" if precision == validation.EXACT else precision


def _keep(hook: MlflowHook, report: ReleaseReport) -> None:
    from onnx_release.report.release_report import write_report

    with tempfile.TemporaryDirectory(prefix="onnx-release-") as folder:
        kept = write_report(Path(folder), report).rename(Path(folder, _history_name(report)))
        path = f"{TAG}/{report.model_name}/{HISTORY}"
        hook.log_files(report.trained_model.training_run_id, path, [kept])


def _put_on_top(hook: MlflowHook, report: ReleaseReport, *, with_metrics: bool) -> None:
    from onnx_release.report.markdown import summary_markdown
    from onnx_release.report.metrics import release_metrics
    from onnx_release.report.release_report import write_report

    with tempfile.TemporaryDirectory(prefix="onnx-release-") as folder:
        written, summary = write_report(Path(folder), report), Path(folder, "summary.md")
        summary.write_text(summary_markdown(report), encoding="utf-8")
        variant = _variant(report)
        below = f"/{variant}" if variant else ""
        figures = {name.replace(TAG, f"{TAG}{below}", 1): figure for name, figure in release_metrics(report).items()}
        run_id = report.trained_model.training_run_id
        hook.log_files(run_id, f"{TAG}/{report.model_name}{below}", [written, summary])
        if with_metrics:
            hook.log_metrics(run_id, figures)


def leave_reproduction(hook: MlflowHook, training: TrainedModel, model_name: str, folder: Path) -> None:
    """Put what shows a parity failure again beside the report, in place of an earlier one; nothing without a folder.

    It is a help to a person and no part of the verdict, so a server that does not take it gets a line in the log.
    """
    if not folder.is_dir():
        return
    files = sorted(file for file in folder.iterdir() if file.is_file())
    try:
        validation.model_name(model_name)
        path = f"{TAG}/{model_name}/{REPRODUCTION}"
        hook.log_files(training.training_run_id, path, files)
    except (Refused, Transient) as failure:
        log.warning("What shows the failure again is not on record in MLflow: %s", failure)


def _tags_before(hook: MlflowHook, training_run_id: str) -> dict[str, str]:
    with hook.mlflow_errors(f"run {training_run_id}"):
        return dict(hook.client.get_run(training_run_id).data.tags)


def _release_stands(hook: MlflowHook, training_run_id: str, tags: dict[str, str]) -> bool:
    """Tell whether the tags name an exact version that is in the registry and was made from this run.

    The tag alone could name a version that was deleted since; the registry alone holds versions, too, whose release
    failed before their alias was moved.
    """
    if (tags.get(f"{TAG}.precision") or validation.EXACT) != validation.EXACT:
        return False
    name, version = tags.get(f"{TAG}.model_name"), tags.get(f"{TAG}.version")
    return bool(name and version) and model_registry.holds(hook, str(name), str(version), training_run_id)


def _cleared(tags: dict[str, str]) -> dict[str, str]:
    """Return, emptied, what the tags still say of a release that stands no more."""
    return {name: "" for name in OF_A_RELEASE if tags.get(f"{TAG}.{name}")}


def _attempt(context: Context, training_run_id: str, status: str, reason: str = "") -> dict[str, str]:
    said = f"{status} {_now():%Y-%m-%dT%H:%M:%SZ}"
    conf = dict(context["dag_run"].conf or {})
    return {
        "last_attempt": f"{said}: {reason}" if reason else said,
        "last_attempt_url": dag_run_url(context),
        "rerun_url": rerun_url(training_run_id, conf),
    }


def _page(context: Context) -> dict[str, str]:
    return {"dag_run_url": dag_run_url(context), "dag_run_id": context["dag_run"].run_id}


def _tags(outcome: dict[str, str]) -> dict[str, str]:
    return {f"{TAG}.{name}": text[:TAG_MAX_CHARACTERS] for name, text in outcome.items()}


def _history_name(report: ReleaseReport) -> str:
    """Return a file name that sorts by time and that two attempts in one second do not share."""
    digest = hashlib.sha256(f"{report.dag_run_url}\0{report.status}".encode()).hexdigest()
    return f"{_now():%Y%m%dT%H%M%SZ}-{report.status}-{digest[:8]}.json"


def _now() -> datetime:
    return datetime.now(UTC)


def accepted_report(context: Context, model_name: str, training: TrainedModel, judged: Judged) -> ReleaseReport:
    """Return the report of an artifact that every step accepted; anything else raises `Refused`."""
    from onnx_release.report.release_report import build_report

    require_accepted(judged.artifact, judged.check, judged.benchmark)
    report = build_report(model_name, training, judged.artifact, judged.check, judged.benchmark)
    return report.replace(dag_run_url=dag_run_url(context))


def leave_refusal(
    hook: MlflowHook, context: Context, error: Refused, *, model_name: str, training: TrainedModel, **parts: Any
) -> None:
    """Put a refused release's report on its training run; a run that cannot take it gets a line in the task's log.

    :param parts: the records gathered so far, by the names that `ReleaseReport` gives them.
    """
    from onnx_release.report.acceptance import report_failures

    found = report_failures(parts.get("check"), parts.get("benchmark")) or (str(error),)
    try:
        validation.model_name(model_name)
        report = ReleaseReport(
            status="refused",
            reasons=found,
            model_name=model_name,
            trained_model=training,
            dag_run_url=dag_run_url(context),
            **parts,
        )
        leave(hook, context, report)
    except (Refused, Transient) as failure:
        # The refusal itself is what the task must fail with; a deleted run, for one, takes no tags.
        log.warning("The refusal is not on record in MLflow: %s", failure)
