"""What a release leaves on its training run in MLflow: the report, its figures, and tags that say what became of it."""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_onnx import names, settings
from airflow_onnx.hooks.mlflow import Evidence
from airflow_onnx.verdict import Judged, require_accepted
from onnx_release.errors import Refused, Transient
from onnx_release.records import ReleaseReport, TrainedModel

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_onnx.hooks.mlflow import MlflowHook

log = logging.getLogger(__name__)

TAG = "onnx_release"
# MLflow refuses longer tag values on runs; the whole text is in the report.
TAG_MAX_CHARACTERS = 4000


def dag_run_url(context: Context) -> str:
    """Return the address of the DAG run's page, or its bare id where Airflow's own address is not configured."""
    run: Any = context["dag_run"]
    path = f"/dags/{quote(run.dag_id, safe='')}/runs/{quote(run.run_id, safe='')}"
    return settings.airflow_url() + path


def rerun_url(training_run_id: str, conf: dict[str, Any]) -> str:
    """Return the address of the trigger page, filled in for another release of the run with these parameters."""
    filled = {**conf, "training_run_id": training_run_id}
    return f"{settings.airflow_url()}/onnx-release/trigger?conf={quote(json.dumps(filled, sort_keys=True), safe='')}"


def leave(hook: MlflowHook, report: ReleaseReport, **tags: str) -> None:
    """Log report and summary as artifacts, the figures as metrics, and the outcome as tags of the training run."""
    from onnx_release.report import metrics, summary_markdown, write_report

    outcome = {
        "status": report.status,
        "reason": "; ".join(report.reasons),
        "model_name": report.model_name,
        "dag_run_url": report.dag_run_url,
        "sha256": report.artifact.sha256 if report.artifact else "",
        **tags,
    }
    with tempfile.TemporaryDirectory(prefix="onnx-release-") as folder:
        written = write_report(Path(folder), report)
        summary = Path(folder, "summary.md")
        summary.write_text(summary_markdown(report), encoding="utf-8")
        hook.log_evidence(
            report.training.training_run_id,
            Evidence(
                artifact_path=f"{TAG}/{report.model_name}",
                files=(written, summary),
                metrics=metrics(report),
                tags={f"{TAG}.{name}": text[:TAG_MAX_CHARACTERS] for name, text in outcome.items()},
            ),
        )


def accepted_report(context: Context, model_name: str, training: TrainedModel, judged: Judged) -> ReleaseReport:
    """Return the report of an artifact that every step accepted; anything else raises `Refused`."""
    from onnx_release.report import build_report

    require_accepted(judged.artifact, judged.check, judged.benchmark)
    # Where it was staged means nothing to a reader of the report.
    artifact = dataclasses.replace(judged.artifact, uri="")
    report = build_report(model_name, training, artifact, judged.check, judged.benchmark)
    return dataclasses.replace(report, dag_run_url=dag_run_url(context))


def leave_refusal(
    hook: MlflowHook, context: Context, error: Refused, *, model_name: str, training: TrainedModel, **parts: Any
) -> None:
    """Put a refused release's report on its training run; a run that cannot take it gets a line in the task's log.

    :param parts: the records gathered so far, by the names that `ReleaseReport` gives them.
    """
    from onnx_release.report import reasons

    found = reasons(parts.get("check"), parts.get("benchmark")) or (str(error),)
    try:
        names.model_name(model_name)
        report = ReleaseReport(
            status="refused",
            reasons=found,
            model_name=model_name,
            training=training,
            dag_run_url=dag_run_url(context),
            **parts,
        )
        leave(hook, report)
    except (Refused, Transient) as failure:
        # The refusal itself is what the task must fail with; a deleted run, for one, takes no tags.
        log.warning("The refusal is not on record in MLflow: %s", failure)
