"""Operator of the promotion: moves the alias to the new version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_onnx import params, step_times, validation
from airflow_onnx.errors import StorageRefused, TrackingRefused
from airflow_onnx.events import model_assets, release_end
from airflow_onnx.events.figures import Figures
from airflow_onnx.links import ModelVersionLink, release_links
from airflow_onnx.log_lines import wrapped
from airflow_onnx.operators.acceptance import require_same_bytes
from airflow_onnx.operators.approval import Approval
from airflow_onnx.operators.release_step import AcceptedStepOperator, StepRun
from airflow_onnx.storage import evidence, s3
from airflow_onnx.storage.object_metadata import object_metadata
from airflow_onnx.tracking import alias_log, model_registry, promotion, promotion_lock, run_log
from airflow_onnx.tracking.promotion import Move
from airflow_onnx.tracking.promotion_policy import PromotionPolicy
from airflow_onnx.tracking.version_tags import version_tags
from onnx_release.limits import REPORTS
from onnx_release.records import AliasMove, Contract, ModelVersion, ReleaseReport, S3Object
from onnx_release.scratch import scratch_folder

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink

# The XCom key of the result in one sentence.
HEADLINE_KEY = "headline"


class MlflowPromoteModelOperator(AcceptedStepOperator):
    """Moves the aliases, sets the legacy stage on request, and logs the release to the version and the training run.

    Judged artifact, uploaded objects and version must have the same sha256. An alias moves only to a version with
    the same inputs and outputs. It stays at the version of a newer training run; the release succeeds then, too. A move
    that needs an approval is refused without one. An `AssetAlias` among the `outlets` gets an event of the asset
    ``models:/<name>@<alias>`` for each alias that is at the version: see `events.model_assets`.

    :param uploaded: the `S3Object` that the upload returned.
    :param version: the `ModelVersion` that the registration returned.
    :param policy: fields of `PromotionPolicy`. A model of reduced precision gets aliases such as ``candidate-int8``.
    :param given: the `Approval`, or empty if none was needed.
    :param stage: ``Staging`` or ``Production`` for consumers that load by stage; ``none`` or empty for no stage. A
        model of reduced precision cannot have a stage. The stage follows the same rules as the alias.
    :param rules: fields of `MoveRules`, each a value or its JSON.
    """

    template_fields: Sequence[str] = (
        *AcceptedStepOperator.template_fields,
        "uploaded",
        "version",
        "policy",
        "given",
        "stage",
        "rules",
    )
    operator_extra_links: Sequence[BaseOperatorLink] = (*release_links(), ModelVersionLink())
    ui_color = "#fee2e2"

    def __init__(
        self,
        *,
        uploaded: Any,
        version: Any,
        policy: dict[str, Any],
        given: Any = None,
        stage: str = "",
        rules: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.uploaded = uploaded
        self.version = version
        self.policy = policy
        self.given = given
        self.stage = stage
        self.rules = rules

    def release(self, run: StepRun) -> ModelVersion:
        """Check the objects and the three digests, move the aliases, log the release."""
        version = params.record(ModelVersion, self.version, "register")
        uploaded = params.record(S3Object, self.uploaded, "upload")
        judged, report = self.accepted_report(run)
        report = report.replace(steps=step_times.step_times(run.context), serving=uploaded.layouts)
        artifact = judged.artifact
        require_same_bytes(artifact, uploaded, version)
        policy = PromotionPolicy.read(self.policy)
        stage = validation.stage_for(self.stage, artifact.precision)
        self._require_objects(uploaded)
        evidence.require_signed_in_store(s3.folder_at(self.s3_conn_id, uploaded.uri, rerun=None), artifact)
        promoter = run.promoter(self.s3_conn_id, self.rules)
        with promotion_lock.promotion_lock(
            run.hook, version.name, promotion_lock.holder(run.context, self.task_id)
        ) as lock:
            # MLflow may have carried out a repeated request for the version after the registration.
            model_registry.delete_duplicates(run.hook, version.name, version.training_run_id, version.sha256)
            candidate = promotion.registered(run.hook, version, Contract.of_artifact(artifact))
            # All decisions before any change: a refusal leaves aliases, stage and figures unchanged.
            stage_move = promoter.stage_move(candidate, stage) if stage else None
            moves = promoter.moves(candidate, policy, artifact.precision, report.benchmark)
            given = self._approval(
                version, {alias: policy.reasons(alias, move, report) for alias, move in moves.items()}
            )
            self._publish(run, report, version, uploaded)
            if stage and stage_move and self._moves(stage_move):
                model_registry.set_stage(run.hook, version, stage)
            moved = [alias for alias, move in moves.items() if self._moves(move)]
            for alias in moved:
                promotion.move_alias(run.hook, version.name, _logged(run, alias, version, given), lock)
            promoted = version.replace(
                alias=", ".join(moved) or None,
                alias_note="; ".join(move.stays for move in moves.values() if move.stays) or None,
            )
            report_url = self._log_release(run, report, promoted)
        release_end.leave_summary(run.context, report, report_url)
        contract, figures = Contract.of_artifact(artifact), Figures.of_report(report)
        for alias in moved:
            model_assets.add_event(run.context, self.outlets, version.replace(alias=alias), contract, figures)
            self.log.info("models:/%s@%s is now version %d.", version.name, alias, version.version)
        self.link_urls[ModelVersionLink.name] = run.hook.server.version_url(version.name, version.version)
        for line in wrapped(report.headline):
            self.log.info("%s", line)
        run.context["ti"].xcom_push(key=HEADLINE_KEY, value=report.headline)
        return promoted

    def _approval(self, version: ModelVersion, reasons: dict[str, list[str]]) -> Approval | None:
        """Return the approval.

        :raises TrackingRefused: ``no_approval`` if it does not cover an alias that needs it.
        """
        given = params.optional_record(Approval, self.given)
        for alias, found in reasons.items():
            if found and not (given and given.covers(version.name, version.version, version.sha256, alias)):
                raise TrackingRefused(
                    f"The alias '{alias}' of model '{version.name}'",
                    f"needs an approval for version {version.version} ({'; '.join(found)}), and there is none",
                    "Clear the task 'register' with its downstream tasks: 'approve' then waits for a person.",
                    code="no_approval",
                )
        return given

    def _moves(self, move: Move) -> bool:
        """Log the decision about an alias or a stage. Return True if it moves."""
        if move.stays:
            for line in wrapped(f"{move.stays}."):
                self.log.info("%s", line)
        for difference in move.differences:
            for line in wrapped(f"{move.target} moves to other inputs or outputs: {difference}."):
                self.log.warning("%s", line)
        return not move.stays

    def _publish(self, run: StepRun, report: ReleaseReport, version: ModelVersion, uploaded: S3Object) -> None:
        """Put the report beside the objects, and its figures on the version, in place of those of an earlier release.

        One release at a time does this, so that objects, version and training run have the same figures.
        """
        from onnx_release.artifact.digests import describe_folder
        from onnx_release.report.html import write_page
        from onnx_release.report.markdown import summary_markdown
        from onnx_release.report.release_report import write_report
        from onnx_release.report.short_view import release_state

        folder = s3.folder_at(self.s3_conn_id, uploaded.uri)
        with scratch_folder() as scratch:
            write_report(scratch, report)
            write_page(scratch, report)
            metadata = object_metadata(run.hook.server, version.training_run_id, version.sha256)
            for file in describe_folder(scratch):
                s3.put(folder, scratch, file, metadata)
        request = model_registry.VersionRequest(
            name=version.name,
            training_run_id=version.training_run_id,
            sha256=version.sha256,
            source=version.source,
            description=summary_markdown(report),
            tags=version_tags(report, run.evidence["artifact"], release_state(report)),
        )
        model_registry.update_version(run.hook, request, version.version)

    def _log_release(self, run: StepRun, report: ReleaseReport, version: ModelVersion) -> str:
        released = run_log.ReleasedVersion(
            version=version.version,
            alias=version.alias or "",
            alias_note=version.alias_note or "",
            s3_uri=version.source,
            wall_s=sum(step.wall_s - (step.waited_s or 0.0) for step in report.steps) if report.steps else None,
        )
        return run_log.log_report(run.hook, run.context, report, released=released)

    def _require_objects(self, uploaded: S3Object) -> None:
        found = s3.sizes(s3.folder_at(self.s3_conn_id, uploaded.uri))
        # Another release of the same bytes may have replaced the report.
        files = [file for file in uploaded.files if file.path not in REPORTS]
        if changed := [file.path for file in files if found.get(file.path) != file.size_bytes]:
            raise StorageRefused(
                f"The folder {uploaded.uri}",
                f"has missing or changed objects since the upload: {', '.join(changed)}",
                "Clear the task 'upload' with its downstream tasks.",
                code="objects_changed",
            )


def _logged(run: StepRun, alias: str, version: ModelVersion, given: Approval | None) -> AliasMove:
    """Return the move of an alias for the alias log. Its person is the one who approved it."""
    why = f"release of training run {run.trained_model.run_name or run.trained_model.training_run_id}"
    if given is None or alias not in given.aliases:
        return alias_log.move_to(run.context, alias, version.version, why=why)
    why += f", approved{f': {given.comment}' if given.comment else ''}"
    return alias_log.move_to(run.context, alias, version.version, why=why, by=given.by)
