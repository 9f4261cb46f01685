"""Events of the verification: the asset ``onnx-verification``, and the notification of changed verdicts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias

from airflow_onnx.events.notifications import Notifier, call_each, listed
from onnx_release.records.base import Record
from onnx_release.records.verification import RollBack, VersionResult

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

VERIFICATION = Asset("onnx-verification")
"""The asset for the `schedule` of a DAG. It has an event for each failed version and each changed verdict."""
# The outlet of the tasks. An asset itself would get an event from each task, also without news.
VERIFIED_VERSIONS = AssetAlias("onnx_verified_versions")

END_KEY = "verification"
"""The key of the `VerificationEnd` in XCom, and in the context: ``{{ verification.headline }}`` in a template."""


class VerificationEnd(Record):
    """End of one DAG run of the verification, for notifications.

    Attributes:
        headline: The result in one sentence.
        versions: The number of versions.
        failed: The number of failed ones.
        not_verified: The number of those without a verdict.
        changed: The number of changed verdicts.
        changes: The first of them.
        roll_backs: The first aliases that moved or were to move.
        dag_run_url: The address of the DAG run in Airflow.
    """

    headline: str
    versions: int
    failed: int
    not_verified: int
    changed: int
    changes: tuple[VersionResult, ...] = ()
    roll_backs: tuple[RollBack, ...] = ()
    dag_run_url: str = ""


def add(context: Context, outlets: Iterable[Any], found: Sequence[VersionResult]) -> None:
    """Add an event for each failed version and each changed verdict. Airflow stores them when the task succeeds."""
    for outlet in outlets:
        if not isinstance(outlet, AssetAlias):
            continue
        for one in found:
            if one.outcome == "failed" or one.is_news:
                extra: dict[str, Any] = {
                    "model": one.model,
                    "version": one.version,
                    "verdict": one.outcome,
                    "reason": one.reason,
                }
                context["outlet_events"][outlet].add(VERIFICATION, extra=extra)


class VerificationCallback:
    """Callback of the last task of the verification, which calls the notifiers if a verdict has changed."""

    def __init__(self, on_change: Notifier | Sequence[Notifier] | None) -> None:
        """Set the notifiers.

        :raises TypeError: for one that cannot be called, when the DAG file is parsed.
        """
        self.notifiers = listed("change", on_change)

    def __call__(self, context: Context) -> None:
        """Call the notifiers. An error of one is logged; the others are still called."""
        try:
            ti = context["ti"]
            end = VerificationEnd.from_dict(ti.xcom_pull(task_ids=ti.task_id, key=END_KEY))
        except Exception:  # The API server or a damaged XCom can raise anything.
            log.exception("The end of the verification cannot be read. No notifier is called.")
            return
        if end.changed:
            call_each(self.notifiers, {**context, END_KEY: end}, end.headline)
