"""Operator of the upload of an accepted artifact to S3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx import dag_runs, params, validation
from airflow_onnx.deployment import buckets
from airflow_onnx.links import ObjectLink, release_links
from airflow_onnx.operators.acceptance import JudgedArtifact
from airflow_onnx.operators.release_step import AcceptedStepOperator, StepRun
from airflow_onnx.preflight.store import sweep
from airflow_onnx.storage import s3, serving_layouts, staging
from airflow_onnx.storage.object_metadata import object_metadata
from onnx_release.errors import Refused
from onnx_release.limits import REPORTS
from onnx_release.records import FileDigest, ReleaseReport, S3Object
from onnx_release.scratch import scratch_folder

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink

    from onnx_release.serving.layouts import Layout

# The XCom key of the folder that the upload fills, also of an unfinished upload.
TARGET_KEY = "target_uri"
_SENT = {True: "uploaded", False: "already there"}


class OnnxUploadToS3Operator(AcceptedStepOperator):
    """Uploads artifact and report below ``s3://<bucket>/<prefix>/<model name>/<training run id>/<sha256 prefix>/``.

    An artifact that is staged in the same store is copied there by the store. Objects with the right bytes are not
    uploaded again by a retry or a second release. Returns an `S3Object` after every object was verified.

    :param bucket: an existing bucket.
    :param dag_bucket: the bucket that the DAG file names, which is allowed besides those of the deployment. None:
        `bucket`, unless it is a template.
    :param prefix: a folder in the bucket; empty for its root.
    :param serving_layouts: ``triton``, ``kserve`` or both, to upload the layouts of these model servers too.
    """

    template_fields: Sequence[str] = (*AcceptedStepOperator.template_fields, "bucket", "prefix", "serving_layouts")
    operator_extra_links: Sequence[BaseOperatorLink] = (*release_links(), ObjectLink())
    ui_color = "#fae8ff"

    def __init__(
        self, *, bucket: str, dag_bucket: str | None = None, prefix: str = "", serving_layouts: Any = (), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.bucket = bucket
        self.dag_bucket = buckets.in_dag_file(bucket) if dag_bucket is None else dag_bucket
        self.prefix = prefix
        self.serving_layouts = serving_layouts

    def release(self, run: StepRun) -> S3Object:
        """Upload missing objects, verify all, and remove objects that do not belong to the artifact."""
        buckets.require_allowed(self.bucket, self.dag_bucket)
        judged, accepted = self.accepted_report(run)
        artifact, training_run_id = judged.artifact, run.trained_model.training_run_id
        of_run = validation.run_folder_uri(self.bucket, self.prefix, run.model_name, training_run_id)
        target = s3.folder_at(self.s3_conn_id, validation.artifact_uri(of_run, artifact.sha256))
        layouts = self._layouts(run, judged, target)
        s3.require_bucket(target)
        # Pushed before the first object: the clean-up removes the objects of an unfinished upload too.
        run.context["ti"].xcom_push(key=TARGET_KEY, value=target.uri)
        metadata = object_metadata(run.hook.server, training_run_id, artifact.sha256)
        sent = []
        for file, is_new in staging.open_staging(artifact.staging_uri).send(artifact, target, metadata):
            self.log.debug("%s/%s, %d bytes: %s.", target.uri, file.path, file.size_bytes, _SENT[is_new])
            sent += [file] if is_new else []
        made = serving_layouts.put_layouts(target, artifact, layouts, metadata) if layouts else ()
        report, is_new = self._upload_report(target, accepted.replace(serving=made), metadata)
        sent += [report] if is_new else []
        stray = set(s3.sizes(target)) - {file.path for file in artifact.files} - REPORTS
        s3.remove(target, sorted(stray))
        sweep(s3.folder_at(self.s3_conn_id, of_run), dag_runs.owner(run.context))
        self.link_urls[ObjectLink.name] = s3.console_url(target)
        files = tuple(sorted((*artifact.files, report), key=lambda file: file.path))
        self._log_sent(target, files, sent)
        return S3Object(
            uri=target.uri,
            bucket=target.bucket,
            prefix=target.prefix,
            sha256=artifact.sha256,
            size_bytes=sum(file.size_bytes for file in files),
            files=files,
            layouts=made,
        )

    def _layouts(self, run: StepRun, judged: JudgedArtifact, target: s3.S3Folder) -> Sequence[Layout]:
        """Return the layouts of model servers. A model that a server cannot serve is refused before the upload."""
        names = params.value(self.serving_layouts) or ()
        if not names:
            return ()
        from onnx_release.serving.layouts import plan_layouts

        uri = serving_layouts.layouts_folder(target).uri
        largest = max(judged.benchmark.parity.batch_sizes)
        return plan_layouts(names, judged.artifact, run.model_name, uri, largest)

    def _log_sent(self, target: s3.S3Folder, files: Sequence[FileDigest], sent: Sequence[FileDigest]) -> None:
        from onnx_release.report.numbers import size_text

        total, new = (size_text(sum(file.size_bytes for file in group)) for group in (files, sent))
        if len(sent) == len(files):
            self.log.info("Uploaded %d files, %s, verified.", len(files), total)
        else:
            self.log.info(
                "Uploaded %d files, %s. %d files were there. All %d, %s, verified.",
                len(sent), new, len(files) - len(sent), len(files), total,
            )  # fmt: skip
        self.log.info("%s", target.uri)

    def _upload_report(
        self, target: s3.S3Folder, report: ReleaseReport, metadata: dict[str, str]
    ) -> tuple[FileDigest, bool]:
        """Upload the report, unless an accepted one of the same bytes exists: a version may quote that one.

        :return: the report's file, and True if it was uploaded.
        """
        from onnx_release.artifact.digests import describe_folder
        from onnx_release.limits import REPORT_FILE
        from onnx_release.report.release_report import write_report

        existing = s3.read_digest(target, REPORT_FILE)
        with scratch_folder() as scratch:
            if existing is not None:
                s3.fetch(target, [existing], scratch)
                if _accepts_same_bytes(scratch / REPORT_FILE, report):
                    return existing, False
            write_report(scratch, report)
            (written,) = describe_folder(scratch)
            s3.put(target, scratch, written, metadata)
        return written, True


def _accepts_same_bytes(path: Path, report: ReleaseReport) -> bool:
    from onnx_release.report.release_report import read_report

    try:
        found = read_report(path)
    except Refused:
        return False
    sha256s = [one.artifact.sha256 if one.artifact else None for one in (found, report)]
    return found.status == "accepted" and sha256s[0] == sha256s[1]
