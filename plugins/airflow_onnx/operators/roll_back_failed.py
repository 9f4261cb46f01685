"""Operator that moves the aliases of failed versions back, if the DAG `verify_releases` is allowed to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from airflow_onnx.deployment import settings
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.log_lines import one_line
from airflow_onnx.operators.move_alias import AliasRequest, MoveAliasStep
from airflow_onnx.operators.verify_releases import allowed_buckets
from airflow_onnx.task_outcome import airflow_outcome
from airflow_onnx.tracking import alias_log, model_registry
from airflow_onnx.tracking.released_versions import released_versions
from airflow_onnx.verification import results, table
from airflow_onnx.verification.verify_version import Verifier
from onnx_release.errors import Refused
from onnx_release.records import AliasMove
from onnx_release.records.verification import RollBack, VersionResult

if TYPE_CHECKING:
    from airflow.sdk import Context

_WHY_MAX_CHARACTERS = 400


class RollBackFailedVersionsOperator(MoveAliasStep):
    """Moves each alias of a failed version back to the version before; returns a `RollBack` for each alias.

    The version before is that of the alias log. It must pass the verification now. A protected alias stays: its move
    needs an approval, which the DAG `move_alias` asks for.

    :param found: the lists of `VersionResult` of the mapped tasks.
    :param on_failure: ``roll_back`` to move aliases; ``nothing`` skips the task.
    :param buckets: as in `VerifyReleasedVersionsOperator`.
    """

    template_fields: Sequence[str] = (*MoveAliasStep.template_fields, "found", "on_failure", "buckets")
    ui_color = "#fee2e2"

    def __init__(self, *, found: Any, on_failure: str, buckets: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.found = found
        self.on_failure = on_failure
        self.buckets = buckets

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Move the aliases, one after the other."""
        if self.on_failure != "roll_back":
            raise AirflowSkipException("The parameter on_failure is nothing: no alias moves.")
        with airflow_outcome(), MlflowRest(MlflowHook(self.mlflow_conn_id).server) as rest:
            verifier = Verifier(rest=rest, s3_conn_id=self.s3_conn_id, buckets=allowed_buckets(self.buckets))
            done = [
                self._rolled_back(context, verifier, one, alias)
                for one in table.flat(self.found)
                if one.outcome == "failed"
                for alias in one.aliases
            ]
        for one in done:
            self.log.info("%s", one.sentence)
        return [one.to_dict() for one in done]

    def _rolled_back(self, context: Context, verifier: Verifier, failed: VersionResult, alias: str) -> RollBack:
        hook = MlflowHook(self.mlflow_conn_id)
        holder = model_registry.alias_holder(hook, failed.model, alias)
        current = int(holder.version) if holder else None
        moves = [one for one in alias_log.read(hook, failed.model) if one.alias == alias]
        before = version_before(moves, failed.version)
        done = RollBack(model=failed.model, alias=alias, from_version=failed.version, to_version=before)
        if current != failed.version:
            # An earlier try of this task may have moved it.
            is_ours = bool(moves) and moves[-1].dag_run == context["dag_run"].run_id and current == before
            return done.replace(moved=is_ours, reason="" if is_ours else f"it is at version {current} now")
        if reason := self._obstacle(context, verifier, done):
            return done.replace(reason=one_line(reason, _WHY_MAX_CHARACTERS))
        try:
            self._move(context, hook, done, failed.reason)
        except Refused as refusal:
            return done.replace(reason=one_line(str(refusal), _WHY_MAX_CHARACTERS))
        return done.replace(moved=True)

    def _obstacle(self, context: Context, verifier: Verifier, done: RollBack) -> str:
        """Return the reason why the alias stays, empty for none."""
        if done.to_version is None:
            return "the alias log has no version before"
        if settings.is_protected(done.alias):
            return (
                f"it is protected, and its move needs an approval: roll it back to version {done.to_version} on the "
                "page of the model"
            )
        every = released_versions(verifier.rest, [done.model], all_versions=True)
        target = next((one for one in every if one.version == done.to_version), None)
        if target is None:
            return f"version {done.to_version} was deleted, or no release made it"
        try:
            report, _ = verifier.verify(target)
        except Refused as refusal:
            return f"version {done.to_version} cannot be verified: {refusal}"
        results.write(verifier.rest, target, report, str(context["dag_run"].run_id))
        return "" if report.passed else f"version {done.to_version} fails too: {report.reason}"

    def _move(self, context: Context, hook: MlflowHook, done: RollBack, why: str) -> None:
        request = AliasRequest(
            model_name=done.model,
            alias=done.alias,
            version=int(done.to_version or 0),
            expected_version=done.from_version,
            reason=one_line(f"version {done.from_version} failed its verification: {why}", _WHY_MAX_CHARACTERS),
            by=alias_log.user_of(context),
        )
        self.move(context, hook, self.verified_version(hook, request, allowed_buckets(self.buckets)))


def version_before(moves: Sequence[AliasMove], version: int) -> int | None:
    """Return the version from which the alias last went forward to this one.

    A move back to it came from a later version, which a person or this DAG has left.
    """
    found = [one.from_version for one in moves if one.to_version == version and one.from_version]
    return next((before for before in reversed(found) if before < version), None)
