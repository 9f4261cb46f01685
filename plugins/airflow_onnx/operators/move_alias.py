"""Operators of the DAG `move_alias`: verify the version, wait for an approval if one is needed, move the alias."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.exceptions import DownstreamTasksSkipped

from airflow_onnx import params, validation
from airflow_onnx.deployment import buckets, settings
from airflow_onnx.errors import StorageRefused, TrackingRefused
from airflow_onnx.events import model_assets
from airflow_onnx.events.figures import Figures
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.links import ModelVersionLink
from airflow_onnx.log_lines import one_line
from airflow_onnx.operators import approval
from airflow_onnx.operators.approval import Approval
from airflow_onnx.operators.cancelled import EndsWhenCancelled
from airflow_onnx.storage import evidence, s3
from airflow_onnx.task_outcome import airflow_outcome
from airflow_onnx.tracking import alias_log, model_registry, promotion, promotion_lock, version_files
from airflow_onnx.tracking.promotion import Candidate, MoveRules, Promoter
from airflow_onnx.tracking.run_description import escaped
from onnx_release.errors import ParameterRefused
from onnx_release.records import AliasMove, Contract, FileDigest, ModelVersion
from onnx_release.records.base import Record
from onnx_release.scratch import scratch_folder
from onnx_release.training_runs import tags
from onnx_release.training_runs.names import validate_model_name

if TYPE_CHECKING:
    from airflow.sdk import Context

_REASON_MAX_CHARACTERS = 500
_VERSION_MAX = 2**31 - 1


class AliasRequest(Record):
    """Move of an alias that a person asked for.

    Attributes:
        model_name: The registered model.
        alias: The alias to move.
        version: The version that gets it.
        expected_version: The version that has it now, None if no version has it.
        reason: The reason, for the alias log.
        by: The user who triggered the DAG run.
    """

    model_name: str
    alias: str
    version: int
    expected_version: int | None = None
    reason: str
    by: str


class VerifiedVersion(Record):
    """Version whose files were downloaded, hashed and loaded, and the move that it was verified for."""

    request: AliasRequest
    sha256: str
    source: str
    training_run_id: str
    headline: str
    contract: Contract
    figures: Figures
    files: tuple[FileDigest, ...]

    def refuse_move(self, problem: str, action: str, code: str) -> NoReturn:
        """Raise the refusal of the move."""
        subject = f"The alias '{self.request.alias}' of model '{self.request.model_name}'"
        raise TrackingRefused(subject, problem, action, code=code)


class MoveAliasStep(EndsWhenCancelled, BaseOperator):
    """Base class of the tasks of `move_alias`.

    :param mlflow_conn_id: an Airflow connection of type `mlflow`.
    :param s3_conn_id: an Airflow connection of type `s3store` or `aws`.
    :param contract_change: ``refuse`` or ``allow`` a version with other inputs and outputs than the current one.
    """

    template_fields: Sequence[str] = ("mlflow_conn_id", "s3_conn_id", "contract_change")

    def __init__(
        self,
        *,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        s3_conn_id: str = "minio_default",
        contract_change: str = "refuse",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.mlflow_conn_id = mlflow_conn_id
        self.s3_conn_id = s3_conn_id
        self.contract_change = contract_change
        # As in `ReleaseStepOperator`.
        self.link_urls: dict[str, str] = {}

    def require_possible(self, hook: MlflowHook, verified: VerifiedVersion) -> bool:
        """Compare the alias with the expected version, and the inputs and outputs of both versions.

        :return: False if the version has the alias already.
        :raises TrackingRefused: ``alias_moved`` or ``contract_change``.
        """
        request = verified.request
        holder = model_registry.alias_holder(hook, request.model_name, request.alias)
        current = int(holder.version) if holder else None
        if current == request.version:
            return False
        if current != request.expected_version:
            found, expected = (
                "at no version" if one is None else f"at version {one}" for one in (current, request.expected_version)
            )
            verified.refuse_move(
                f"is {found} now, and was expected {expected}",
                "Read the alias log of the model. Then start again with the current version.",
                "alias_moved",
            )
        rules = MoveRules.from_dict({"contract_change": self.contract_change, "alias_back": True})
        version = model_registry.get_version(hook, request.model_name, request.version)
        candidate = Candidate(
            model_name=request.model_name,
            contract=verified.contract,
            training_run_id=verified.training_run_id,
            ended_at_ms=promotion.training_end_ms(hook, version),
            version=request.version,
        )
        move = Promoter(hook=hook, s3_conn_id=self.s3_conn_id, rules=rules).alias_move(candidate, request.alias)
        for difference in move.differences:
            self.log.warning("%s moves to other inputs or outputs: %s.", move.target, difference)
        return True

    def verified_version(
        self, hook: MlflowHook, request: AliasRequest, of_releases: Collection[str]
    ) -> VerifiedVersion:
        """Download the files of the version, hash them and run the model once.

        :param of_releases: the buckets that the files may be in.
        """
        from onnx_release.check.smoke_test import smoke_test

        version = model_registry.get_version(hook, request.model_name, request.version)
        self.link_urls[ModelVersionLink.name] = hook.server.version_url(request.model_name, request.version)
        with scratch_folder() as scratch:
            artifact, report = version_files.fetch_version(self.s3_conn_id, version, scratch, of_releases)
            smoke_test(scratch, artifact)
            evidence.require_signed(s3.folder_at(self.s3_conn_id, version.source, rerun=None), scratch)
        verified = VerifiedVersion(
            request=request,
            sha256=artifact.sha256,
            source=version.source,
            training_run_id=version.run_id or report.trained_model.training_run_id,
            headline=report.headline,
            contract=Contract.of_artifact(artifact),
            figures=Figures.of_report(report),
            files=artifact.files,
        )
        self.log.info("Version %d has the sha256 %s and runs.", request.version, artifact.sha256)
        self.require_possible(hook, verified)
        return verified

    def move(
        self, context: Context, hook: MlflowHook, verified: VerifiedVersion, given: Approval | None = None
    ) -> AliasMove:
        """Compare, move and log under the lock of the model, and add an asset event.

        :param given: the approval, for the alias log.
        """
        request = verified.request
        holder = promotion_lock.holder(context, self.task_id)
        with promotion_lock.promotion_lock(hook, request.model_name, holder) as lock:
            before = model_registry.alias_holder(hook, request.model_name, request.alias)
            if not self.require_possible(hook, verified):
                self.log.info("Version %d has the alias '%s' already.", request.version, request.alias)
            self._require_unchanged(hook, verified)
            move = self._logged(context, request, given)
            promotion.move_alias(hook, request.model_name, move, lock)
            for version in (before, model_registry.get_version(hook, request.model_name, request.version)):
                if version is not None:
                    promotion.tag_training_run(hook, version, move)
        moved = ModelVersion(
            name=request.model_name,
            version=request.version,
            sha256=verified.sha256,
            source=verified.source,
            training_run_id=verified.training_run_id,
            alias=request.alias,
        )
        model_assets.add_event(context, self.outlets, moved, verified.contract, verified.figures)
        return move

    def _require_unchanged(self, hook: MlflowHook, verified: VerifiedVersion) -> None:
        """Compare the version and the sizes of its objects with those that were verified."""
        request = verified.request
        version = model_registry.get_version(hook, request.model_name, request.version)
        found = s3.sizes(s3.folder_at(self.s3_conn_id, verified.source, rerun=None))
        changed = [file.path for file in verified.files if found.get(file.path) != file.size_bytes]
        if version.source != verified.source or version.tags.get(tags.VERSION_SHA256) != verified.sha256 or changed:
            raise StorageRefused(
                f"Version {request.version} of model '{request.model_name}'",
                f"has changed since it was verified: {', '.join(changed) or 'its sha256 or source'}",
                "Clear the task 'verify' with its downstream tasks.",
                code="objects_changed",
            )

    def _logged(self, context: Context, request: AliasRequest, given: Approval | None) -> AliasMove:
        why = request.reason
        if given:
            why += f" (approved by {given.by}{f': {given.comment}' if given.comment else ''})"
        return alias_log.move_to(context, request.alias, request.version, why=why, by=request.by)


class VerifyVersionOperator(MoveAliasStep):
    """Downloads the files of the version, hashes them and runs the model once; returns a `VerifiedVersion`.

    :param model_name: the registered model; `alias`, `version`, `expected_version` and `reason` as in `AliasRequest`.
    :param approval_task: the task that is skipped unless the alias is protected.
    """

    template_fields: Sequence[str] = (
        *MoveAliasStep.template_fields,
        "model_name",
        "alias",
        "version",
        "expected_version",
        "reason",
    )
    operator_extra_links: Sequence[BaseOperatorLink] = (ModelVersionLink(),)
    ui_color = "#dcfce7"

    def __init__(
        self,
        *,
        model_name: str,
        alias: str,
        version: Any,
        expected_version: Any,
        reason: str,
        approval_task: str = "approve",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_name = model_name
        self.alias = alias
        self.version = version
        self.expected_version = expected_version
        self.reason = reason
        self.approval_task = approval_task

    def execute(self, context: Context) -> dict[str, Any]:
        """Verify, and skip the approval of an alias that needs none."""
        with airflow_outcome(context):
            verified = self.verified_version(MlflowHook(self.mlflow_conn_id), self._request(context), buckets.allowed())
        result = verified.to_dict()
        if not settings.is_protected(verified.request.alias):
            # The exception ends the task as a success, without a return value.
            context["ti"].xcom_push(key=BaseXCom.XCOM_RETURN_KEY, value=result)
            raise DownstreamTasksSkipped(tasks=[self.approval_task])
        return result

    def _request(self, context: Context) -> AliasRequest:
        version = params.optional_integer(self.version, "version", 1, _VERSION_MAX)
        reason = one_line(self.reason, _REASON_MAX_CHARACTERS)
        missing = [name for name, given in (("version", version), ("reason", reason)) if not given]
        if missing or version is None:
            raise ParameterRefused(
                f"The parameter '{missing[0]}'", "is empty", "Trigger the DAG again with a value.", code="missing_value"
            )
        return AliasRequest(
            model_name=validate_model_name(self.model_name),
            alias=validation.validate_alias(self.alias),
            version=version,
            expected_version=params.optional_integer(self.expected_version, "expected_version", 1, _VERSION_MAX),
            reason=reason,
            by=alias_log.user_of(context),
        )


class ApproveMoveOperator(MoveAliasStep):
    """Waits until a person approves the move of a protected alias; returns an `Approval`.

    :param verified: the `VerifiedVersion`.
    :param timeout_h: the longest wait in hours.
    """

    template_fields: Sequence[str] = (*MoveAliasStep.template_fields, "verified", "timeout_h")
    ui_color = "#fef3c7"

    def __init__(self, *, verified: Any, timeout_h: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.verified = verified
        self.timeout_h = timeout_h

    def execute(self, context: Context) -> None:
        """Show the question in Airflow and wait."""
        with airflow_outcome(context):
            verified = params.record(VerifiedVersion, self.verified, "verify")
            request = verified.request
            current = "no version" if request.expected_version is None else f"version {request.expected_version}"
            body = (
                f"Move the protected alias `{request.alias}` of `{request.model_name}` from {current} to "
                f"version {request.version}.\n\n"
                f"- requested by {escaped(request.by)}: {escaped(request.reason)}\n"
                f"- version {request.version}: {escaped(verified.headline)}\n"
                f"- training run: {escaped(verified.training_run_id)}\n"
                f"- sha256: `{verified.sha256}`, verified at {escaped(verified.source)}\n"
            )
            requested = Approval(
                model_name=request.model_name,
                version=request.version,
                sha256=verified.sha256,
                aliases=(request.alias,),
            )
            raise approval.awaiting_answer(context, requested, body, float(params.value(self.timeout_h)))

    def execute_complete(self, context: Context, event: dict[str, Any], requested: dict[str, Any]) -> dict[str, Any]:
        """Return the approval, or fail after a rejection."""
        with airflow_outcome(context):
            given = approval.approved(Approval.from_dict(requested), event)
        self.log.info("Approved by %s.", given.by)
        return given.to_dict()


class MoveAliasOperator(MoveAliasStep):
    """Moves the alias if it is still at the expected version, logs the move, and sends an asset event.

    Two training runs get the names of their versions' aliases as a tag: the one of the version that has the alias now,
    and the one of the version that had it.

    :param verified: the `VerifiedVersion`.
    :param given: the `Approval`, or empty for an alias that needs none.
    """

    template_fields: Sequence[str] = (*MoveAliasStep.template_fields, "verified", "given")
    operator_extra_links: Sequence[BaseOperatorLink] = (ModelVersionLink(),)
    ui_color = "#fee2e2"

    def __init__(self, *, verified: Any, given: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.verified = verified
        self.given = given

    def execute(self, context: Context) -> dict[str, Any]:
        """Move the alias."""
        with airflow_outcome(context):
            verified = params.record(VerifiedVersion, self.verified, "verify")
            request, hook = verified.request, MlflowHook(self.mlflow_conn_id)
            self.link_urls[ModelVersionLink.name] = hook.server.version_url(request.model_name, request.version)
            given = params.optional_record(Approval, self.given)
            self._require_approval(verified, given)
            move = self.move(context, hook, verified, given)
        self.log.info("models:/%s@%s is now version %d.", request.model_name, request.alias, request.version)
        return move.to_dict()

    def _require_approval(self, verified: VerifiedVersion, given: Approval | None) -> None:
        request = verified.request
        if not settings.is_protected(request.alias):
            return
        if given is None or not given.covers(request.model_name, request.version, verified.sha256, request.alias):
            verified.refuse_move(
                "is protected, and nobody approved its move to this version",
                "Clear the task 'verify' with its downstream tasks.",
                "no_approval",
            )
