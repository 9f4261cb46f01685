"""Approval of a version by a person, in Airflow's human-in-the-loop state.

The task is in the state ``awaiting_input``: it occupies no worker, pool or triggerer. An answer in Airflow's UI or API,
or the end of the time, resumes it in the method `execute_complete`. In Airflow 3.2 it is deferred to a trigger instead.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import Param

from airflow_onnx import compat
from airflow_onnx.errors import TrackingRefused
from airflow_onnx.log_lines import one_line
from onnx_release.errors import Transient
from onnx_release.records.base import Record
from onnx_release.text import shorten

if TYPE_CHECKING:
    from airflow.sdk import Context

APPROVE, REJECT = "Approve", "Reject"
_COMMENT_MAX_CHARACTERS = 500


class Approval(Record):
    """Approval of one version for some aliases. `by`, `at` and `comment` are empty until a person approves."""

    model_name: str
    version: int
    sha256: str
    aliases: tuple[str, ...]
    by: str = ""
    at: str = ""
    comment: str = ""

    def covers(self, model_name: str, version: int, sha256: str, alias: str) -> bool:
        """Return True if a person approved these bytes of this version for the alias."""
        same = (self.model_name, self.version, self.sha256) == (model_name, version, sha256)
        return same and alias in self.aliases and bool(self.at)


def awaiting_answer(context: Context, requested: Approval, body: str, timeout_h: float) -> BaseException:
    """Show a question in Airflow, and return the exception that ends the task until a person answers.

    :param requested: the approval to give. Airflow passes it as a dict to `execute_complete`.
    :param body: Markdown. Foreign text in it must be `run_description.escaped`.
    """
    # `upsert_hitl_detail` is private in Airflow 3.3: `HITLOperator` of the standard provider calls it, too, but cannot
    # make its text in `execute`. Remove when the task SDK publishes it.
    from airflow.sdk.execution_time.hitl import upsert_hitl_detail

    options = [APPROVE, REJECT]
    comment = Param(
        "", type=["null", "string"], title="Comment", maxLength=_COMMENT_MAX_CHARACTERS,
        description="The reason. It is kept in the alias log, or with the rejection.",
    )  # fmt: skip
    upsert_hitl_detail(
        ti_id=context["ti"].id,
        options=options,
        subject=f"Move {', '.join(requested.aliases)} of {requested.model_name} to version {requested.version}?",
        body=body,
        params={"comment": comment.serialize()},
    )
    kwargs = {"requested": requested.to_dict()}
    return compat.awaiting_input(context["ti"].id, kwargs, options, {"comment": comment}, timedelta(hours=timeout_h))


def approved(requested: Approval, event: dict[str, Any]) -> Approval:
    """Return the requested approval with the answer of a person.

    :param event: the event with which Airflow resumes the task.
    :raises TrackingRefused: ``rejected`` or ``not_answered``.
    """
    subject = f"Version {requested.version} of model '{requested.model_name}'"
    if event.get("error_type") == "timeout":
        action = "Clear the task 'approve' with its downstream tasks: Airflow then shows the question again."
        raise TrackingRefused(subject, "was not approved in time", action, code="not_answered")
    if "error" in event:
        raise Transient("The approval", f"failed in Airflow: {shorten(event['error'])}", "Airflow tries again.")
    user = event.get("responded_by_user") or {}
    by = one_line(str(user.get("name") or user.get("id") or "an unknown user"), 100)
    comment = one_line(str((event.get("params_input") or {}).get("comment") or ""), _COMMENT_MAX_CHARACTERS)
    if event.get("chosen_options") != [APPROVE]:
        raise TrackingRefused(
            subject,
            f"was rejected by {by}{f': {comment}' if comment else ''}",
            "The version stays registered, and no alias was moved. To decide again, clear the task 'approve' with its "
            "downstream tasks.",
            code="rejected",
        )
    at = event.get("responded_at")
    return requested.replace(by=by, comment=comment, at=str(getattr(at, "isoformat", lambda: at)()))
