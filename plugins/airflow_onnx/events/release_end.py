"""End of a release: released, refused or failed, with the texts and links for notifications."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk.exceptions import AirflowNotFoundException, AirflowRuntimeError

from airflow_onnx import airflow_urls, outcome_log, params
from airflow_onnx.events.figures import Figures
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.task_outcome import TaskOutcome, dag_run_outcome
from onnx_release.errors import Refused
from onnx_release.records import ModelVersion, ReleaseReport, TrainedModel
from onnx_release.records.base import Record
from onnx_release.text import printable, shorten

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

SUMMARY_KEY = "summary"
"""The XCom key of a task's `Summary`."""

# Subjects of mails and messages in chats stay readable.
_TEXT_MAX_CHARACTERS = 500


class Summary(Record):
    """Headline, next step, address and figures of a release report."""

    headline: str
    next_step: str = ""
    report_url: str = ""
    figures: Figures = Figures()


class ReleaseEnd(Record):
    """End of one DAG run of a release. Every text is one line without control characters.

    Attributes:
        status: ``released``, ``refused`` (the model or a parameter is at fault) or ``failed``.
        headline: The result in one sentence.
        next_step: The advice for a person; empty when nothing is to do.
        code: The code of a refusal, else empty.
        task: The id of the task that refused or failed, else empty.
        model_name: The name of the registered model; empty before it is found.
        version: The number of the released version.
        alias: The aliases that moved to the version, separated by commas; None if they stayed at another one.
        run_name: The name of the training run.
        training_run_id: Its id in MLflow; empty if no training run was found.
        dag_run_id: The id of the DAG run.
        figures: The figures of the report.
        dag_run_url: The address of the DAG run in Airflow.
        rerun_url: The address of the trigger page, filled in with this release.
        training_run_url: The address of the training run in MLflow, else empty.
        version_url: The address of the version in MLflow, else empty.
        report_url: The address of the report in MLflow, else empty.
    """

    status: Literal["released", "refused", "failed"]
    headline: str
    next_step: str = ""
    code: str = ""
    task: str = ""
    model_name: str = ""
    version: int | None = None
    alias: str | None = None
    run_name: str = ""
    training_run_id: str = ""
    dag_run_id: str = ""
    figures: Figures = Figures()
    dag_run_url: str = ""
    rerun_url: str = ""
    training_run_url: str = ""
    version_url: str = ""
    report_url: str = ""


def leave_summary(context: Context, report: ReleaseReport, report_url: str) -> None:
    """Leave the summary of a report in the XCom of the running task.

    :param report_url: the address of the report, empty if it is not logged.
    """
    summary = Summary(
        headline=report.headline,
        next_step=report.next_step,
        report_url=report_url,
        figures=Figures.of_report(report),
    )
    try:
        context["ti"].xcom_push(key=SUMMARY_KEY, value=summary.to_dict())
    except Exception:  # The task must end as it does without it, for any failure of the API server.
        log.warning("The summary of the release is not recorded in XCom.", exc_info=True)


def release_end(context: Context) -> ReleaseEnd:
    """Return the end of a DAG run from the XComs of its tasks, for the last task of the DAG run.

    A release whose version is promoted is released, even if the last task itself failed.
    """
    trained = params.optional_record(TrainedModel, _pulled(context, "wait_for_training"))
    # The last task records a promotion that an outage cut off, and returns its version.
    found = _pulled(context, "promote") or _pulled(context, context["ti"].task_id)
    version = params.optional_record(ModelVersion, found)
    if version:
        headline = f"Released: version {version.version} of {version.name}."
        outcome = TaskOutcome(status="failed", reason="", headline=headline, task="promote")
    else:
        outcome = dag_run_outcome(context)
    summary = params.optional_record(Summary, _pulled(context, outcome.task, SUMMARY_KEY))
    summary = summary or Summary(headline=outcome.headline, next_step=outcome.next_step)
    texts: dict[str, str] = {
        "headline": summary.headline,
        "next_step": summary.next_step,
        "model_name": (version.name if version else trained and trained.model_name) or "",
        "run_name": (trained and trained.run_name) or "",
        "training_run_id": (trained and trained.training_run_id) or "",
        "code": "" if version else outcome.code,
        "task": "" if version else outcome.task,
    }
    return ReleaseEnd(
        status="released" if version else outcome.status,
        version=version.version if version else None,
        alias=version.alias if version else None,
        figures=summary.figures,
        report_url=summary.report_url,
        dag_run_id=context["dag_run"].run_id,
        **{name: _one_line(text) for name, text in texts.items()},
        **_links(context, trained, version),
    )


def _links(context: Context, trained: TrainedModel | None, version: ModelVersion | None) -> dict[str, str]:
    run: Any = context["dag_run"]
    conf = dict(run.conf or {})
    found = {"dag_run_url": airflow_urls.dag_run_url(run.dag_id, run.run_id)}
    training_run_id = trained.training_run_id if trained else str(conf.get("training_run_id") or "")
    found["rerun_url"] = outcome_log.rerun_link(context, training_run_id)
    if trained is None:
        return found
    try:
        server = MlflowHook(str(conf.get("mlflow_conn_id") or MlflowHook.default_conn_name)).server
    except (AirflowNotFoundException, AirflowRuntimeError, Refused) as error:
        log.warning("The notification has no links to MLflow: %s", shorten(error))
        return found
    found["training_run_url"] = server.run_url(trained.experiment_id, trained.training_run_id)
    if version:
        found["version_url"] = server.version_url(version.name, version.version)
    return found


def _pulled(context: Context, task_id: str, key: str = "return_value") -> Any:
    return context["ti"].xcom_pull(task_ids=task_id, key=key) if task_id else None


def _one_line(text: str) -> str:
    """Return a text without characters that break a line, or hide or reverse a part of it."""
    return shorten(printable(text), _TEXT_MAX_CHARACTERS)
