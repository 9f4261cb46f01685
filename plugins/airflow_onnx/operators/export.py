"""PyTorch to ONNX: fetch the trained model, export it, stage the artifact."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.exceptions import DownstreamTasksSkipped

from airflow_onnx import params, validation
from airflow_onnx.deployment import settings
from airflow_onnx.links import TrainingRunLink
from airflow_onnx.operators.release_step import ReleaseStepOperator
from airflow_onnx.storage import staging, worker_cache
from airflow_onnx.tracking.release_inputs import ReleaseInputs
from onnx_release import limits
from onnx_release.records import OnnxArtifact

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context


class OnnxExportOperator(ReleaseStepOperator):
    """Exports the trained model and returns an `OnnxArtifact` whose `uri` is the staged folder.

    :param work_uri: the DAG run's work folder, as `PrepareWorkFolderOperator` returned it.
    :param opset: the ONNX opset to write; empty takes the exporter's default.
    :param device: ``cpu``, ``cuda``, or ``auto`` for CUDA where there is one.
    :param source: ``factory``, ``factory_kwargs`` and ``input_spec``, each a value or its JSON; see docs/parameters.md.
    :param skip_unless: optional tasks that follow, by their ids, each with true or false or its JSON: one that is not
        asked for is skipped from here, since to start it takes longer than to find that it has nothing to do.
    """

    template_fields: Sequence[str] = (
        *ReleaseStepOperator.template_fields,
        "work_uri",
        "opset",
        "device",
        "source",
        "skip_unless",
    )
    operator_extra_links: Sequence[BaseOperatorLink] = (TrainingRunLink(),)
    ui_color = "#dbeafe"

    def __init__(
        self,
        *,
        work_uri: str,
        opset: Any = None,
        device: str = "auto",
        source: dict[str, Any] | None = None,
        skip_unless: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.work_uri = work_uri
        self.opset = opset
        self.device = device
        self.source = source
        self.skip_unless = skip_unless

    def execute(self, context: Context) -> dict[str, Any]:
        """Export, then leave out the tasks that nobody asked for."""
        result = super().execute(context)
        if left_out := [task_id for task_id, asked in (self.skip_unless or {}).items() if not params.value(asked)]:
            # The exception ends the task as a success, and its result is handed on before.
            context["ti"].xcom_push(key=BaseXCom.XCOM_RETURN_KEY, value=result)
            raise DownstreamTasksSkipped(tasks=left_out)
        return result

    def release(self, context: Context) -> OnnxArtifact:
        """Download to a folder that ends with the task, export into staging."""
        from onnx_release.export.export_model import ExportStepOptions
        from onnx_release.run_step import export

        validation.model_name(self.model_name)
        source = ReleaseInputs(self.hook, self.training, self.source or {})
        options = ExportStepOptions(
            opset=params.optional_integer(self.opset, "opset", limits.OPSET_MIN, limits.OPSET_MAX),
            device=self.device,
            allow_pickle=settings.allow_pickle(),
            factory=source.factory(),
            input_spec=source.input_spec(),
        )
        self.link_urls[TrainingRunLink.name] = self.hook.server.run_url(
            self.training.experiment_id, self.training.training_run_id
        )
        work = staging.open_staging(self.work_uri)
        with (
            tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch,
            worker_cache.trained_model(self.hook, self.training.model_uri) as trained,
        ):
            out = work.output_folder(staging.ARTIFACT, Path(scratch))
            artifact = work.stage(staging.ARTIFACT, export(trained.path, out, options), out)
        for attempt in artifact.attempts:
            self.log.info("strategy %s: %s %s", attempt.strategy, attempt.outcome, attempt.reason or "")
        for finding in artifact.findings:
            self.log.info("%s %s: %s %s", finding.severity, finding.code, finding.message, finding.fix or "")
        self.log.info("Exported %s (%d bytes, opset %d).", artifact.sha256, artifact.size_bytes, artifact.opset)
        return artifact.replace(trained_sha256=trained.sha256)
