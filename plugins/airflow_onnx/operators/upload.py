"""The judged bytes, into the object store, and verified there."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx import validation
from airflow_onnx.links import ObjectLink
from airflow_onnx.operators.release_step import AcceptedStepOperator
from airflow_onnx.storage import s3, staging
from onnx_release.errors import Refused
from onnx_release.records import FileDigest, OnnxArtifact, ReleaseReport, S3Object

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context


TARGET_KEY = "target_uri"


class OnnxUploadToS3Operator(AcceptedStepOperator):
    """Puts the artifact and its report below ``s3://<bucket>/<model name>/<training run id>/<sha256 prefix>/``.

    What is staged in the same store, the store copies. Objects that are there and right are left alone, so a retry or a
    second release of the same bytes moves nothing.
    Returns an `S3Object` once every object was verified.

    :param bucket: an existing bucket.
    """

    template_fields: Sequence[str] = (*AcceptedStepOperator.template_fields, "bucket")
    operator_extra_links: Sequence[BaseOperatorLink] = (ObjectLink(),)
    ui_color = "#fae8ff"

    def __init__(self, *, bucket: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bucket = bucket

    def release(self, context: Context) -> S3Object:
        """Verify what is staged, put what is missing."""
        accepted = self.accepted_report(context)
        artifact: OnnxArtifact = self.gathered["artifact"]
        target = self._target(artifact)
        s3.require_bucket(target)
        # Pushed before the first object: the clean-up must know of a half-done upload too.
        context["ti"].xcom_push(key=TARGET_KEY, value=target.uri)
        metadata = {"training-run-id": self.training.training_run_id, "artifact-sha256": artifact.sha256}
        for file, sent in staging.open_staging(artifact.staging_uri).send(artifact, target, metadata):
            self._log_sent(target, file, sent)
        report = self._put_report(target, accepted, metadata)
        stray = set(s3.sizes(target)) - {file.path for file in artifact.files} - {report.path}
        s3.remove(target, sorted(stray))
        self.link_urls[ObjectLink.name] = s3.console_url(target)
        files = tuple(sorted((*artifact.files, report), key=lambda file: file.path))
        return S3Object(
            uri=target.uri,
            bucket=target.bucket,
            prefix=target.prefix,
            sha256=artifact.sha256,
            size_bytes=sum(file.size_bytes for file in files),
            files=files,
        )

    def _target(self, artifact: OnnxArtifact) -> s3.S3Folder:
        prefix = validation.object_prefix(self.model_name, self.training.training_run_id, artifact.sha256)
        return s3.folder_at(self.s3_conn_id, f"s3://{validation.bucket(self.bucket)}/{prefix}")

    def _log_sent(self, target: s3.S3Folder, file: FileDigest, sent: bool) -> None:
        verb = "was put there" if sent else "was there already"
        self.log.info("%s/%s, %d bytes, %s.", target.uri, file.path, file.size_bytes, verb)

    def _put_report(self, target: s3.S3Folder, report: ReleaseReport, metadata: dict[str, str]) -> FileDigest:
        """Keep a report that speaks well of these bytes; the version's tags and readers may already quote it."""
        from onnx_release.artifact.digests import describe_folder
        from onnx_release.limits import REPORT_FILE
        from onnx_release.report.release_report import write_report

        there = s3.read_digest(target, REPORT_FILE)
        with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
            if there is not None:
                s3.fetch(target, [there], Path(scratch))
                if _speaks_for(Path(scratch, REPORT_FILE), report):
                    return there
            write_report(Path(scratch), report)
            (written,) = describe_folder(Path(scratch))
            s3.put(target, Path(scratch), written, metadata)
            self._log_sent(target, written, True)
        return written


def _speaks_for(path: Path, report: ReleaseReport) -> bool:
    from onnx_release.report.release_report import read_report

    try:
        found = read_report(path)
    except Refused:
        return False
    return found.status == "accepted" and _sha256(found) == _sha256(report)


def _sha256(report: ReleaseReport) -> str | None:
    return report.artifact.sha256 if report.artifact else None
