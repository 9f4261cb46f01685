"""Operator of the promotion: moves the alias to the new version."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias

from airflow_onnx import params, validation
from airflow_onnx.errors import StorageRefused
from airflow_onnx.links import ModelVersionLink
from airflow_onnx.operators.acceptance import require_same_bytes
from airflow_onnx.operators.release_step import AcceptedStepOperator, StepRun
from airflow_onnx.storage import s3
from airflow_onnx.tracking import model_registry, run_log
from onnx_release.records import ModelVersion, S3Object

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context

# The outlet of the promotion. It resolves to the asset ``models:/<name>@<alias>`` of each released version.
RELEASED_VERSIONS = AssetAlias("onnx_released_versions")


class MlflowPromoteModelOperator(AcceptedStepOperator):
    """Moves the alias, sets the legacy stage on request, and logs the release to the training run.

    Judged artifact, uploaded objects and version must have the same sha256. An `AssetAlias` among the `outlets` gets
    an event of the asset ``models:/<name>@<alias>``, with version, sha256 and URI in its `extra`: a serving DAG can be
    scheduled on it.

    :param uploaded: the `S3Object` that the upload returned.
    :param version: the `ModelVersion` that the registration returned.
    :param alias: the alias to move, for example ``candidate``; a model of reduced precision gets ``candidate-int8``.
    :param stage: ``Staging`` or ``Production`` for consumers that load by stage; ``none`` or empty for no stage. A
        model of reduced precision cannot have a stage.
    """

    template_fields: Sequence[str] = (*AcceptedStepOperator.template_fields, "uploaded", "version", "alias", "stage")
    operator_extra_links: Sequence[BaseOperatorLink] = (ModelVersionLink(),)
    ui_color = "#fee2e2"

    def __init__(self, *, uploaded: Any, version: Any, alias: str, stage: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.uploaded = uploaded
        self.version = version
        self.alias = alias
        self.stage = stage

    def release(self, run: StepRun) -> ModelVersion:
        """Check the objects and the three digests, move the alias, log the release."""
        version = params.record(ModelVersion, self.version, "register")
        uploaded = params.record(S3Object, self.uploaded, "upload")
        judged, report = self.accepted_report(run)
        require_same_bytes(judged.artifact, uploaded, version)
        precision = judged.artifact.precision
        alias, stage = validation.alias_for(self.alias, precision), validation.stage_for(self.stage, precision)
        self._require_objects(uploaded)
        # The alias last: a refused stage leaves it unchanged.
        if stage is not None:
            model_registry.set_stage(run.hook, version, stage)
        model_registry.set_alias(run.hook, version, alias)
        url = run.hook.server.version_url(version.name, version.version)
        self.link_urls[ModelVersionLink.name] = url
        began = run.context["dag_run"].start_date
        released = run_log.ReleasedVersion(
            version=version.version,
            alias=alias,
            s3_uri=uploaded.uri,
            wall_s=(datetime.now(UTC) - began).total_seconds() if began else None,
        )
        run_log.log_report(run.hook, run.context, report, released=released)
        promoted = version.replace(alias=alias)
        self._emit(run.context, promoted)
        self.log.info("models:/%s@%s is now version %d: %s", version.name, alias, version.version, url)
        return promoted

    def _emit(self, context: Context, version: ModelVersion) -> None:
        asset = Asset(f"models:/{version.name}@{version.alias}")
        extra: dict[str, Any] = {"version": version.version, "sha256": version.sha256, "uri": version.source}
        for outlet in self.outlets:
            if isinstance(outlet, AssetAlias):
                context["outlet_events"][outlet].add(asset, extra=extra)

    def _require_objects(self, uploaded: S3Object) -> None:
        found = s3.sizes(s3.folder_at(self.s3_conn_id, uploaded.uri))
        if changed := [file.path for file in uploaded.files if found.get(file.path) != file.size_bytes]:
            raise StorageRefused(
                f"The folder {uploaded.uri}",
                f"has missing or changed objects since the upload: {', '.join(changed)}",
                "Clear the task 'upload' with its downstream tasks.",
                code="objects_changed",
            )
