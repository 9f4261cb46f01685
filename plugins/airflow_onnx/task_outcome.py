"""Classification of every error that ends a task of a release.

``refused``: the model or a parameter is at fault, and the task fails without a retry. ``failed``: a server, the worker
or the program is at fault. A task that did not succeed leaves its `TaskOutcome` in XCom. The teardown of the DAG run
records it on the training run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowRescheduleException,
    AirflowRuntimeError,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
)

from airflow_onnx import outcome_log, retries
from airflow_onnx.deployment import settings
from airflow_onnx.errors import DeploymentRefused
from airflow_onnx.outcome_log import TaskFailed
from onnx_release.errors import Refused, ReleaseError, Transient
from onnx_release.machine_faults import machine_failure
from onnx_release.records import ReleaseReport
from onnx_release.records.base import Record
from onnx_release.text import shorten, without_folders

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

XCOM_KEY = "outcome"
# An unexpected error is repeated once: it may come from a damaged response. More tries would repeat minutes of work.
UNEXPECTED_TRIES = 2

# Airflow's own exceptions for the end of a task.
_AIRFLOWS_OWN = (AirflowFailException, AirflowRescheduleException, AirflowSkipException)


Status = Literal["refused", "failed"]


class TaskOutcome(Record):
    """The end of a task that did not succeed.

    Attributes:
        status: ``refused`` or ``failed``.
        reason: The message of the error.
        code: The code of a refusal, else empty.
        headline: The end in one sentence.
        next_step: The advice for a person.
        task: The id of the task, which `dag_run_outcome` fills in.
        tries: The number of the try, such as `` (try 4 of 4)``; empty for a refusal.
    """

    status: Status
    reason: str
    code: str = ""
    headline: str
    next_step: str = ""
    task: str = ""
    tries: str = ""


@contextmanager
def airflow_outcome(
    context: Context | None = None, on_refused: Callable[[Refused], ReleaseReport] | None = None
) -> Iterator[None]:
    """Turn every error into one that Airflow retries, or into `TaskFailed`, which Airflow never retries.

    :param context: the context of a task of a release, for its `TaskOutcome`. None for a task without a training run.
    :param on_refused: called with a refusal of the model first, to record it on the training run. It returns the
        report.
    """
    try:
        yield
    except AirflowSensorTimeout as error:
        ended = "the training run did not end before the timeout"
        reason, action = f"{ended}. {shorten(error)}", "Release it again after its end."
        _leave(context, TaskOutcome(status="failed", reason=reason, headline=f"Failed: {ended}.", next_step=action))
        raise
    except AirflowTaskTimeout:
        ended = f"was ended at its time limit of {settings.task_timeout_s():g} s, the option task_timeout_s"
        action = "Raise the option, or release a smaller model."
        _leave(context, _outcome(Transient("The task", ended, action), "failed", None))
        raise
    except _AIRFLOWS_OWN:
        raise
    except Exception as error:  # Libraries and a model's own code can raise anything.
        failure = classified(error)
        models_fault = isinstance(failure, Refused) and not failure.is_of_deployment
        report = on_refused(failure) if isinstance(failure, Refused) and models_fault and on_refused else None
        left = _outcome(failure, "refused" if models_fault else "failed", report)
        _leave(context, left if isinstance(failure, Refused) else left.replace(tries=_tries_text(context)))
        if isinstance(failure, Refused):
            if models_fault:
                outcome_log.log_refused(failure, context, report)
            else:
                outcome_log.log_failed(failure)
            raise TaskFailed(failure) from (failure if outcome_log.has_frames() else None)
        outcome_log.log_failed(failure, _tries_text(context))
        if isinstance(failure, Transient):
            raise failure  # noqa: B904 - `classified` has set the cause
        if context is not None and retries.tries(context["ti"]) >= UNEXPECTED_TRIES:
            raise TaskFailed(failure) from error
        raise


def dag_run_outcome(context: Context) -> TaskOutcome:
    """Return the outcome of an unfinished release, for the teardown of its DAG run.

    A task whose process was killed, or that a person marked, leaves no outcome. Its state gives the reason.
    """
    ti, run = context["ti"], context["dag_run"]
    states = ti.get_task_states(run.dag_id, run_ids=[run.run_id]).get(run.run_id, {})
    failed = sorted(task_id for task_id, state in states.items() if state == "failed" and task_id != ti.task_id)
    for task_id in failed:
        if left := ti.xcom_pull(task_ids=task_id, key=XCOM_KEY):
            outcome = TaskOutcome.from_dict(left)
            reason = (
                outcome.reason if outcome.status == "refused" else f"Task '{task_id}'{outcome.tries}: {outcome.reason}"
            )
            return outcome.replace(reason=reason, task=task_id)
    if failed:
        ended = f"The task '{failed[0]}' failed without a message: its process was killed, or a person marked it"
        action = "Read its log and check the worker's memory. Then clear the task with its downstream tasks."
        return TaskOutcome(
            status="failed",
            reason=f"{ended}. {action}",
            headline=f"Failed: {_lower_article(ended)}.",
            next_step=action,
            task=failed[0],
        )
    ended = "the DAG run ended before the promotion, because a person marked its tasks"
    return TaskOutcome(status="failed", reason=ended, headline=f"Failed: {ended}.")


def _outcome(failure: ReleaseError, status: Status, report: ReleaseReport | None) -> TaskOutcome:
    headline = f"{status.capitalize()}: {_lower_article(f'{failure.subject} {failure.problem}')}".rstrip(".") + "."
    return TaskOutcome(
        status=status,
        reason=str(failure),
        code=failure.code if isinstance(failure, Refused) else "",
        headline=report.headline if report else headline,
        next_step=report.next_step if report else failure.action,
    )


def _lower_article(text: str) -> str:
    return text[0].lower() + text[1:] if text.startswith(("The ", "A ", "An ")) else text


def classified(error: Exception) -> ReleaseError:
    """Return the error as `Refused`, `Transient`, or as the base class for an unexpected error."""
    failure: ReleaseError | None = machine_failure(error)
    if failure is None and isinstance(error, ReleaseError):
        return error
    failure = failure or _foreign(error)
    failure.__cause__ = error
    return failure


def _foreign(error: Exception) -> ReleaseError:
    """Return the failure for an error of Airflow or of a library."""
    if isinstance(error, AirflowNotFoundException):
        action = "Create it in Airflow: see docs/connections.md."
        return DeploymentRefused("An Airflow connection", f"is missing: {error}", action, code="no_connection")
    if isinstance(error, ImportError):
        return missing_packages([error.name or "of a library"], without_folders(shorten(error, 200)))
    if isinstance(error, AirflowRuntimeError):
        return Transient("Airflow's API server", f"failed in a call: {shorten(error)}", "Airflow tries again.")
    text = without_folders(shorten(error, 400))
    if isinstance(error, OSError):
        action = "Airflow tries again. If that does not help, check the worker's disk and network."
        return Transient("The worker", f"failed with {type(error).__name__}: {text}", action)
    action = "The log has the traceback. Report it to the authors of this package."
    return ReleaseError("The task", f"ended with an unexpected {type(error).__name__}: {text}", action)


def missing_packages(names: list[str], reason: str = "") -> DeploymentRefused:
    """Return the refusal for packages that the worker cannot import."""
    noun = "package" if len(names) == 1 else "packages"
    return DeploymentRefused(
        f"The worker's Python environment lacks the {noun} {', '.join(names)}",
        f"({reason})" if reason else "and cannot run this task",
        "The model is not at fault. Install them on the workers (pip install 'airflow-onnx-release[worker]'), then "
        "clear the task.",
        code="missing_package",
    )


def _tries_text(context: Context | None) -> str:
    """Return the number of this try, empty for a task without retries."""
    if context is None:
        return ""
    ti: Any = context["ti"]
    return f" (try {retries.tries(ti)} of {ti.task.retries + 1})"


def _leave(context: Context | None, outcome: TaskOutcome) -> None:
    if context is None:
        return
    try:
        context["ti"].xcom_push(key=XCOM_KEY, value=outcome.to_dict())
    except Exception:  # The task must fail with its own error, for any failure of the API server.
        log.warning("The outcome of the task is not recorded in XCom.", exc_info=True)
