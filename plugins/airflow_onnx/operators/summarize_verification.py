"""Operator that ends a DAG run of `verify_releases`: the table, the notification, and the state of the DAG run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_onnx import airflow_urls, params
from airflow_onnx.errors import VerificationRefused
from airflow_onnx.events.verification_events import END_KEY, VerificationEnd
from airflow_onnx.task_outcome import airflow_outcome
from airflow_onnx.tracking.released_versions import ReleasedVersion
from airflow_onnx.verification import table
from onnx_release.errors import RecordRefused
from onnx_release.records.verification import RollBack, VersionResult

if TYPE_CHECKING:
    from airflow.sdk import Context

_NAMED_MAX = 10


class SummarizeVerificationOperator(BaseOperator):
    """Writes one table into the log, and fails if a version failed or was not verified.

    :param listed: the lists of `ReleasedVersion` that were to be verified.
    :param found: the lists of `VersionResult` of the mapped tasks.
    :param moves: the `RollBack` records; empty if no alias may move.
    """

    template_fields: Sequence[str] = ("listed", "found", "moves")
    ui_color = "#f1f5f9"

    def __init__(self, *, listed: Any, found: Any, moves: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.listed = listed
        self.found = found
        self.moves = moves

    def execute(self, context: Context) -> None:
        """Write the table, leave the `VerificationEnd` in XCom, and raise last."""
        with airflow_outcome():
            found = list(self._results())
            moves = [RollBack.from_dict(row) for row in params.value(self.moves) or []]
            for line in table.lines(found):
                self.log.info("%s", line)
            for move in moves:
                self.log.info("%s", move.sentence)
            self.log.info("%s", table.headline(found))
            run = context["dag_run"]
            end = VerificationEnd(
                headline=table.headline(found),
                versions=len(found),
                failed=sum(one.outcome == "failed" for one in found),
                not_verified=sum(one.outcome == "not verified" for one in found),
                changes=tuple(one for one in found if one.is_news)[:_NAMED_MAX],
                changed=sum(one.is_news for one in found),
                roll_backs=tuple(moves)[:_NAMED_MAX],
                dag_run_url=airflow_urls.dag_run_url(run.dag_id, run.run_id),
            )
            context["ti"].xcom_push(key=END_KEY, value=end.to_dict())
            _require_all_passed(found)

    def _results(self) -> Iterator[VersionResult]:
        listed = params.value(self.listed)
        if listed is None or listed == "":
            raise RecordRefused(
                "The list of versions", "is missing from XCom", "Clear the task 'list' with its downstream tasks.",
                code="missing_record",
            )  # fmt: skip
        found = {(one.model, one.version): one for one in table.flat(self.found)}
        for version in (ReleasedVersion.from_dict(row) for rows in listed for row in rows):
            # The process of its task was killed, or a person has cleared or marked it.
            lost = VersionResult(
                model=version.name, version=version.version, aliases=version.aliases, outcome="not verified",
                reason="its task ended without a result: see the log of the task 'verify'",
            )  # fmt: skip
            yield found.get((version.name, version.version), lost)


def _require_all_passed(found: Sequence[VersionResult]) -> None:
    failed = [one for one in found if one.outcome == "failed"]
    missing = [one for one in found if one.outcome == "not verified"]
    if failed:
        raise VerificationRefused(
            f"{len(failed)} of {len(found)} versions",
            f"failed the verification: {_named(failed)}",
            "Read the table above. Roll the aliases back on the page of the model, or release the training run again.",
            code="versions_failed",
        )
    if missing:
        raise VerificationRefused(
            f"{len(missing)} of {len(found)} versions",
            f"could not be verified: {_named(missing)}",
            "Correct the reasons in the table above, and trigger the DAG again.",
            code="versions_not_verified",
        )


def _named(found: Sequence[VersionResult]) -> str:
    names = [f"{one.model} v{one.version}" for one in found[:_NAMED_MAX]]
    return ", ".join(names) + (f" and {len(found) - _NAMED_MAX} more" if len(found) > _NAMED_MAX else "")
