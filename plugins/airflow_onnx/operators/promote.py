"""The alias that consumers load by, moved to a version whose objects are all there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_onnx import params, validation
from airflow_onnx.links import ModelVersionLink
from airflow_onnx.operators.release_step import AcceptedStepOperator
from airflow_onnx.storage import s3
from airflow_onnx.tracking import model_registry, run_log
from onnx_release.errors import Refused
from onnx_release.records import ModelVersion, S3Object

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context


class MlflowPromoteModelOperator(AcceptedStepOperator):
    """Moves the alias (and, on request, a legacy stage) and writes the release down on the training run.

    :param uploaded: the `S3Object` that the upload returned.
    :param version: the `ModelVersion` that the registration returned.
    :param alias: the alias to move, for example ``candidate``; a model of reduced precision gets ``candidate-int8``.
    :param stage: ``Staging`` or ``Production`` for consumers that load by stage; ``none`` or empty for no stage, and
        for nothing else where the precision is reduced.
    """

    template_fields: Sequence[str] = (
        *AcceptedStepOperator.template_fields,
        "uploaded",
        "version",
        "alias",
        "stage",
    )
    operator_extra_links: Sequence[BaseOperatorLink] = (ModelVersionLink(),)
    ui_color = "#fee2e2"

    def __init__(
        self,
        *,
        uploaded: Any,
        version: Any,
        alias: str,
        stage: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.uploaded = uploaded
        self.version = version
        self.alias = alias
        self.stage = stage

    def release(self, context: Context) -> ModelVersion:
        """Look at the objects once more, move the alias, leave the evidence."""
        version = params.record(ModelVersion, self.version, "register")
        uploaded = params.record(S3Object, self.uploaded, "upload")
        report = self.accepted_report(context)
        precision = self.gathered["artifact"].precision
        alias, stage = validation.alias_for(self.alias, precision), validation.stage_for(self.stage, precision)
        self._require_objects(uploaded)
        # The alias last: a stage that is refused leaves it where it was.
        if stage:
            model_registry.set_stage(self.hook, version, stage)
        model_registry.set_alias(self.hook, version, alias)
        url = self.hook.server.version_url(version.name, version.version)
        self.link_urls[ModelVersionLink.name] = url
        began = context["dag_run"].start_date
        released = run_log.ReleasedVersion(
            version=version.version,
            alias=alias,
            s3_uri=uploaded.uri,
            wall_s=(datetime.now(UTC) - began).total_seconds() if began else None,
        )
        run_log.log_report(self.hook, context, report, released=released)
        self.log.info("models:/%s@%s is now version %d: %s", version.name, alias, version.version, url)
        return version.replace(alias=alias)

    def _require_objects(self, uploaded: S3Object) -> None:
        found = s3.sizes(s3.folder_at(self.s3_conn_id, uploaded.uri))
        if missing := [file.path for file in uploaded.files if found.get(file.path) != file.size_bytes]:
            raise Refused(
                f"objects {missing} at {uploaded.uri}",
                "are gone or changed since they were verified",
                "Clear the task 'upload' with its downstream tasks.",
            )
