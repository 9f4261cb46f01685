"""Operator of the registration of the uploaded artifact in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.exceptions import DownstreamTasksSkipped

from airflow_onnx import params
from airflow_onnx.links import ModelVersionLink, release_links
from airflow_onnx.operators.acceptance import require_accepted
from airflow_onnx.operators.release_step import ReleaseStepOperator, StepRun
from airflow_onnx.storage import evidence, s3
from airflow_onnx.tracking import model_registry
from airflow_onnx.tracking.promotion_policy import PromotionPolicy
from airflow_onnx.tracking.version_tags import version_tags
from onnx_release.errors import ReportRefused
from onnx_release.limits import REPORT_FILE, SIGNATURE_FILE
from onnx_release.records import ModelVersion, OnnxArtifact, ReleaseReport, S3Object
from onnx_release.scratch import scratch_folder
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context


class MlflowRegisterOnnxOperator(ReleaseStepOperator):
    """Downloads the objects, hashes and runs them, and registers them as a `ModelVersion` without an alias.

    Before the version exists, it puts the evidence of their origin beside them: the bill of materials, the provenance
    statement, and a signature if the deployment has a key.
    There is one version for each (training run, sha256). Its tags and description come from the downloaded report.

    :param artifact: the `OnnxArtifact` that the tuning returned.
    :param uploaded: the `S3Object` that the upload returned.
    :param s3_conn_id: the connection that the upload used.
    :param policy: fields of `PromotionPolicy`.
    :param approval_task: the task that is skipped if no alias of the policy needs an approval: to start it takes longer
        than its work. Empty for no such task.
    """

    template_fields: Sequence[str] = (
        *ReleaseStepOperator.template_fields,
        "artifact",
        "uploaded",
        "s3_conn_id",
        "policy",
    )
    operator_extra_links: Sequence[BaseOperatorLink] = (*release_links(), ModelVersionLink())
    ui_color = "#ffedd5"

    def __init__(
        self,
        *,
        artifact: Any,
        uploaded: Any,
        s3_conn_id: str = "minio_default",
        policy: dict[str, Any] | None = None,
        approval_task: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.artifact = artifact
        self.uploaded = uploaded
        self.s3_conn_id = s3_conn_id
        self.policy = policy
        self.approval_task = approval_task
        self._needs_approval = False

    def execute(self, context: Context) -> dict[str, Any]:
        """Register, then skip the approval if it is not needed."""
        result = super().execute(context)
        if self.approval_task and not self._needs_approval:
            # The exception ends the task as a success, without a return value.
            context["ti"].xcom_push(key=BaseXCom.XCOM_RETURN_KEY, value=result)
            raise DownstreamTasksSkipped(tasks=[self.approval_task])
        return result

    def release(self, run: StepRun) -> ModelVersion:
        """Verify the objects, then create the version or find it."""
        from onnx_release.report.markdown import summary_markdown

        artifact = run.evidence["artifact"] = params.record(OnnxArtifact, self.artifact, "tune")
        uploaded = params.record(S3Object, self.uploaded, "upload")
        with scratch_folder() as scratch:
            report = self.verified_report(artifact, uploaded, scratch)
            signer = self._put_evidence(run, report, uploaded, scratch)
        request = model_registry.VersionRequest(
            name=run.model_name,
            training_run_id=run.trained_model.training_run_id,
            sha256=artifact.sha256,
            source=uploaded.uri,
            description=summary_markdown(report),
            tags=version_tags(report, artifact) | ({tags.VERSION_SIGNATURE: signer} if signer else {}),
        )
        if self.policy:
            policy = PromotionPolicy.read(self.policy)
            self._needs_approval = any(
                policy.approval_reasons(alias, report) for alias in policy.aliases(artifact.precision)
            )
        version = model_registry.ensure_version(run.hook, request)
        self.link_urls[ModelVersionLink.name] = run.hook.server.version_url(version.name, version.version)
        state = "created" if version.created else "already there"
        self.log.info("Version %d of '%s': %s.", version.version, version.name, state)
        return version

    def verified_report(self, artifact: OnnxArtifact, uploaded: S3Object, folder: Path) -> ReleaseReport:
        """Download the objects into an empty folder, run the model once, and return the report beside it."""
        from onnx_release.check.smoke_test import smoke_test
        from onnx_release.report.release_report import read_report

        stored = s3.folder_at(self.s3_conn_id, uploaded.uri)
        model = [file for file in uploaded.files if file.path != REPORT_FILE]
        # Another release of the same bytes may have replaced the report since the upload.
        found = s3.read_digest(stored, REPORT_FILE)
        s3.fetch(stored, [*model, *([found] if found else [])], folder)
        smoke_test(folder, artifact)
        report = read_report(folder / REPORT_FILE)
        if report.check is None or report.benchmark is None:
            raise ReportRefused(
                f"The report {uploaded.uri}/{REPORT_FILE}",
                "has no check or no benchmark",
                "Clear the task 'upload' with its downstream tasks.",
                code="incomplete_report",
            )
        require_accepted(artifact, report.check, report.benchmark)
        return report

    def _put_evidence(self, run: StepRun, report: ReleaseReport, uploaded: S3Object, folder: Path) -> str:
        stored = s3.folder_at(self.s3_conn_id, uploaded.uri)
        signer = evidence.put_evidence(stored, folder, report, run.evidence["artifact"], run.hook.server)
        if signer:
            self.log.info("Signed: %s/%s.", uploaded.uri, SIGNATURE_FILE)
        return signer
