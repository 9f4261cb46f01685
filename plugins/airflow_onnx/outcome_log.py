"""Lines in the log of a task that did not succeed: a refusal of the model, or a fault.

Airflow logs the exception of a failed task with its traceback. The frames of a refusal say nothing about the model, so
this module writes the reason, the next step and the link of another release. It leaves Airflow's line out unless the
level is DEBUG.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException

from airflow_onnx import airflow_urls
from airflow_onnx.dag_roles import takes_parameters
from airflow_onnx.log_lines import wrapped
from onnx_release.errors import Refused, ReleaseError, Transient

if TYPE_CHECKING:
    from airflow.sdk import Context

    from onnx_release.records import ReleaseReport

log = logging.getLogger(__name__)

# Browsers and servers accept this much in the address of the trigger page.
LINK_MAX_CHARACTERS = 4000
# A model can have hundreds of outputs.
_DETAILS_MAX = 10


class TaskFailed(AirflowFailException):
    """A task that Airflow does not retry. `failure` has the reason."""

    def __init__(self, failure: ReleaseError) -> None:
        super().__init__(str(failure))
        self.failure = failure


def log_refused(failure: Refused, context: Context | None, report: ReleaseReport | None = None) -> None:
    """Log the block of a refusal: reason, next step and link.

    :param report: the report of the refusal. Its headline and next step replace the failure's own text if it was
        judged by its figures.
    """
    if report is None or report.reasons == (str(failure),):
        _log_block("REFUSED", f"{failure.subject} {failure.problem}", failure.action)
    else:
        _log_block("REFUSED", report.headline.removeprefix("Refused: "), report.next_step, report.reasons)
    if link := rerun_link(context):
        log.info("Release again: %s", link)
    _leave_out_frames()


def log_failed(failure: ReleaseError, tries: str = "") -> None:
    """Log the block of a fault: reason and next step. The task is to be cleared, so it has no link.

    :param tries: the number of this try, empty without retries.
    """
    _log_block(f"FAILED{tries}", f"{failure.subject} {failure.problem}", failure.action)
    if isinstance(failure, Refused | Transient):
        # An error of another class is a defect of a program: its traceback is evidence.
        _leave_out_frames()


def has_frames() -> bool:
    """Return True if the log shows the frames of a refusal."""
    return log.isEnabledFor(logging.DEBUG)


def _log_block(state: str, reason: str, action: str, details: Sequence[str] = ()) -> None:
    # One log record for each line: a viewer gives each its own row.
    for line in wrapped(f"{state} · {reason[:1].upper()}{reason[1:].rstrip('.')}."):
        log.error("%s", line)
    for detail in details[:_DETAILS_MAX]:
        for line in wrapped(f"- {detail}"):
            log.error("%s", line)
    if len(details) > _DETAILS_MAX:
        log.error("- and %d more: see the report", len(details) - _DETAILS_MAX)
    for line in wrapped(f"What to do: {action}"):
        log.info("%s", line)


def rerun_link(
    context: Context | None, training_run_id: str = "", max_characters: int = LINK_MAX_CHARACTERS, dag_id: str = ""
) -> str:
    """Return the address that repeats this release, empty for a task without a training run.

    A DAG with a task group of a release has no form of a release. Its address is that of the DAG run.

    :param training_run_id: the training run, empty for the one of the parameters.
    :param dag_id: the DAG of the release, empty for the DAG of the task.
    """
    run: Any = context["dag_run"] if context else None
    if context is None or run is None:
        return ""
    if not takes_parameters(context):
        return airflow_urls.dag_run_url(run.dag_id, run.run_id)
    conf = dict(run.conf or {})
    run_id = training_run_id or str(conf.get("training_run_id") or "")
    if not run_id and not conf.get("model_uri"):
        return ""
    return airflow_urls.rerun_url(dag_id or run.dag_id, run_id, conf, max_characters)


def _leave_out_frames() -> None:
    """Leave Airflow's line about the exception out of this process's log, unless the level is DEBUG."""
    import structlog

    processors = structlog.get_config()["processors"]
    # Airflow's logger has this list, so the list itself gets the processor.
    if not has_frames() and _without_logged_exception not in processors:
        processors.insert(0, _without_logged_exception)


def _without_logged_exception(_logger: Any, _method: str, event: Mapping[str, Any]) -> Mapping[str, Any]:
    import structlog

    error = sys.exc_info()[1]
    is_refused = isinstance(error, TaskFailed) and isinstance(error.failure, Refused)
    if event.get("exc_info") and (is_refused or isinstance(error, Transient)):
        raise structlog.DropEvent
    return event
