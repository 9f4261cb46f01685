"""A model version in MLflow for the uploaded bytes, after these were fetched back and run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx import params, validation
from airflow_onnx.links import ModelVersionLink
from airflow_onnx.operators.acceptance import require_accepted
from airflow_onnx.operators.release_step import ReleaseStepOperator
from airflow_onnx.storage import s3
from airflow_onnx.tracking import model_registry
from onnx_release.errors import Refused
from onnx_release.limits import REPORT_FILE
from onnx_release.records import ModelVersion, OnnxArtifact, ReleaseReport, S3Object

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context


class MlflowRegisterOnnxOperator(ReleaseStepOperator):
    """Downloads the objects into a fresh folder, hashes them, runs them, and registers them; returns a `ModelVersion`.

    There is one version per (training run, sha256). What the version's tags and description say is read from the
    report that lies beside the objects, so the two cannot differ. The version has no alias yet.

    :param artifact: the `OnnxArtifact` that the tuning returned.
    :param uploaded: the `S3Object` that the upload returned.
    :param s3_conn_id: the connection that the upload used.
    """

    template_fields: Sequence[str] = (*ReleaseStepOperator.template_fields, "artifact", "uploaded", "s3_conn_id")
    operator_extra_links: Sequence[BaseOperatorLink] = (ModelVersionLink(),)
    ui_color = "#ffedd5"

    def __init__(self, *, artifact: Any, uploaded: Any, s3_conn_id: str = "minio_default", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.artifact = artifact
        self.uploaded = uploaded
        self.s3_conn_id = s3_conn_id

    def release(self, context: Context) -> ModelVersion:
        """Fetch back, judge what came back, then let MLflow name it."""
        artifact = self.gathered["artifact"] = params.record(OnnxArtifact, self.artifact, "tune")
        uploaded = params.record(S3Object, self.uploaded, "upload")
        report = self._fetched_back(artifact, uploaded)
        version = model_registry.ensure_version(self.hook, self._request(report, artifact, uploaded))
        self.link_urls[ModelVersionLink.name] = self.hook.server.version_url(version.name, version.version)
        self.log.info(
            "Version %d of '%s' %s.", version.version, version.name, "made" if version.created else "was there"
        )
        return version

    def _fetched_back(self, artifact: OnnxArtifact, uploaded: S3Object) -> ReleaseReport:

        from onnx_release.check.smoke_test import smoke_test
        from onnx_release.report.release_report import read_report

        source = s3.folder_at(self.s3_conn_id, uploaded.uri)
        with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
            s3.fetch(source, uploaded.files, Path(scratch))
            smoke_test(Path(scratch), artifact)
            report = read_report(Path(scratch, REPORT_FILE))
        if report.check is None or report.benchmark is None:
            raise Refused(
                f"{uploaded.uri}/{REPORT_FILE}", "lacks a verdict", "Clear the task 'upload' with its downstream."
            )
        require_accepted(artifact, report.check, report.benchmark)
        return report

    def _request(
        self, report: ReleaseReport, artifact: OnnxArtifact, uploaded: S3Object
    ) -> model_registry.VersionRequest:
        from onnx_release.report.markdown import summary_markdown

        return model_registry.VersionRequest(
            name=validation.model_name(self.model_name),
            training_run_id=self.training.training_run_id,
            sha256=artifact.sha256,
            source=uploaded.uri,
            description=summary_markdown(report),
            tags=version_tags(report, artifact, uploaded),
        )


def version_tags(report: ReleaseReport, artifact: OnnxArtifact, uploaded: S3Object) -> dict[str, str]:
    """Return what a version's tags say of its bytes and how they were judged, with fixed keys below ``onnx.``."""
    from onnx_release.report.metrics import release_metrics

    tags = {
        "opset": artifact.opset,
        "ir_version": artifact.ir_version,
        "strategy": artifact.strategy,
        "precision": artifact.precision,
        "size_bytes": artifact.size_bytes,
        "s3_uri": uploaded.uri,
        "training_run_id": report.trained_model.training_run_id,
        "training_model_uri": report.trained_model.model_uri,
        "dag_run_url": report.dag_run_url or "",
    }
    if artifact.variant:
        tags |= {"variant": artifact.variant}
    if artifact.session_options:
        tags |= {"session_options": json.dumps(artifact.session_options, sort_keys=True)}
    tags |= {f"tool.{tool}": version for tool, version in artifact.tool_versions.items()}
    tags |= {f"sha256.{file.path}": file.sha256 for file in uploaded.files}
    tags |= {
        name.replace("onnx_release/", "").replace("/", "."): f"{number:.6g}"
        for name, number in release_metrics(report).items()
    }
    for side, specs in (("input", artifact.inputs), ("output", artifact.outputs)):
        tags |= {f"{side}.{spec.name}": f"{spec.dtype} {list(spec.shape)}" for spec in specs}
    return {f"onnx.{key}": str(text) for key, text in tags.items()}
