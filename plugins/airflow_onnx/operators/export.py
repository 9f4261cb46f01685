"""Operator of the export from PyTorch to ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.exceptions import DownstreamTasksSkipped

from airflow_onnx import defaults, params, step_times
from airflow_onnx.deployment import settings
from airflow_onnx.log_lines import wrapped
from airflow_onnx.operators.release_step import ReleaseStepOperator, StepRun
from airflow_onnx.storage import staging, worker_cache
from airflow_onnx.tracking import pickle_permission
from airflow_onnx.tracking.release_inputs import ReleaseInputs, fetch_inputs
from onnx_release import limits
from onnx_release.errors import Refused
from onnx_release.records import OnnxArtifact
from onnx_release.scratch import scratch_folder

if TYPE_CHECKING:
    from airflow.sdk import Context

    from onnx_release.export.export_model import ExportStepOptions


class OnnxExportOperator(ReleaseStepOperator):
    """Exports the trained model and returns the `OnnxArtifact` in the work folder.

    :param work_uri: the work folder of the DAG run, as `PrepareWorkFolderOperator` returned it. Empty: the same
        folder, which the export then makes. A later release removes it after a week.
    :param opset: the ONNX opset to write; empty for the exporter's default.
    :param device: ``cpu``, ``cuda``, or ``auto`` for CUDA if the worker has it.
    :param single_file_max_bytes: the largest size of all weights in bytes for one file; 0 for external data always.
    :param reference_max_bytes: the largest size of the inputs and PyTorch's outputs that travel with the model; 0 for
        none.
    :param inputs_uri: an ``.npz`` file of inputs (``s3://…``, ``runs:/…``) whose first rows are among them, or empty.
    :param evaluation_uri: an ``.npz`` file of inputs and targets, likewise.
    :param s3_conn_id: an Airflow connection of type `s3store` or `aws`, for such a file.
    :param serving_layouts: layouts of model servers. A model that one cannot serve is refused here.
    :param model_source: ``factory``, ``factory_kwargs``, ``weights_key`` and ``input_spec``, each a value or its JSON;
        docs/parameters.md describes them.
    :param optional_tasks: by task id, true or false or its JSON. The export skips each downstream task with false:
        to start such a task takes longer than its work.
    """

    packages: ClassVar[tuple[str, ...]] = ("mlflow", "torch", "onnx", "onnxscript")
    template_fields: Sequence[str] = (
        *ReleaseStepOperator.template_fields,
        "work_uri",
        "opset",
        "device",
        "single_file_max_bytes",
        "reference_max_bytes",
        "inputs_uri",
        "evaluation_uri",
        "s3_conn_id",
        "serving_layouts",
        "model_source",
        "optional_tasks",
    )
    ui_color = "#dbeafe"

    def __init__(
        self,
        *,
        work_uri: str = "",
        opset: Any = None,
        device: str = "auto",
        single_file_max_bytes: Any = limits.SINGLE_FILE_MAX_BYTES,
        reference_max_bytes: Any = limits.REFERENCE_MAX_BYTES,
        inputs_uri: str = "",
        evaluation_uri: str = "",
        s3_conn_id: str = "minio_default",
        serving_layouts: Any = (),
        model_source: dict[str, Any] | None = None,
        optional_tasks: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.work_uri = work_uri
        self.opset = opset
        self.device = device
        self.single_file_max_bytes = single_file_max_bytes
        self.reference_max_bytes = reference_max_bytes
        self.inputs_uri = inputs_uri
        self.evaluation_uri = evaluation_uri
        self.s3_conn_id = s3_conn_id
        self.serving_layouts = serving_layouts
        self.model_source = model_source
        self.optional_tasks = optional_tasks

    def execute(self, context: Context) -> dict[str, Any]:
        """Export, then skip the optional tasks that are off."""
        result = super().execute(context)
        if any(params.value(on) for on in (self.optional_tasks or {}).values()):
            # The tuning measures.
            step_times.log_queue(context)
        if skipped := [task_id for task_id, on in (self.optional_tasks or {}).items() if not params.value(on)]:
            # The exception ends the task as a success, without a return value.
            context["ti"].xcom_push(key=BaseXCom.XCOM_RETURN_KEY, value=result)
            raise DownstreamTasksSkipped(tasks=skipped)
        return result

    def release(self, run: StepRun) -> OnnxArtifact:
        """Download the trained model, export it and stage the artifact."""
        from onnx_release.run_step import export

        work = self._work_folder(run)
        with (
            scratch_folder() as scratch,
            worker_cache.trained_model(run.hook, run.trained_model.model_uri) as trained,
        ):
            options = self._options(run, scratch)
            out = work.output_folder(staging.ARTIFACT, scratch)
            try:
                exported = export(trained.path, out, options)
            except Refused as refusal:
                worker_cache.require_sound(run.hook, run.trained_model.model_uri, refusal, trained.sha256)
                raise
            if layouts := params.value(self.serving_layouts):
                _require_servable(layouts, exported, run.model_name)
            artifact = work.stage(staging.ARTIFACT, exported, out)
        self._log(artifact)
        return artifact.replace(trained_sha256=trained.sha256)

    def _options(self, run: StepRun, scratch: Path) -> ExportStepOptions:
        """Return the options of the export; files of inputs are downloaded into `scratch`."""
        from onnx_release.export.export_model import ExportStepOptions

        source = ReleaseInputs(run.hook, run.trained_model, self.model_source or {})
        largest = params.optional_integer(
            self.reference_max_bytes, "reference_max_bytes", 0, limits.REFERENCE_MAX_BYTES_LIMIT
        )
        paths = {
            name: fetch_inputs(run.hook, self.s3_conn_id, uri, scratch / name, name) if largest != 0 else None
            for name, uri in (("inputs_uri", self.inputs_uri), ("evaluation_uri", self.evaluation_uri))
        }
        return ExportStepOptions(
            opset=params.optional_integer(self.opset, "opset", limits.OPSET_MIN, limits.OPSET_MAX),
            device=self.device,
            allow_pickle=pickle_permission.is_allowed(run.hook, run.trained_model.model_uri),
            pickle_memory_bytes=settings.pickle_memory_bytes(),
            pickle_user=settings.pickle_user(),
            factory=source.factory(),
            input_spec=source.input_spec(),
            single_file_max_bytes=params.single_file_max_bytes(self.single_file_max_bytes),
            reference_max_bytes=limits.REFERENCE_MAX_BYTES if largest is None else largest,
            inputs_path=paths["inputs_uri"],
            evaluation_path=paths["evaluation_uri"],
        )

    def _work_folder(self, run: StepRun) -> staging.Staging:
        if self.work_uri:
            return staging.open_staging(self.work_uri)
        dag_run: Any = run.context["dag_run"]
        uri = staging.work_folder_uri(settings.staging_uri(), dag_run.dag_id, dag_run.run_id)
        work = staging.open_staging(uri)
        work.prepare(defaults.WORK_KEEP_S)
        return work

    def _log(self, artifact: OnnxArtifact) -> None:
        from onnx_release.report.numbers import seconds_text, size_text

        for finding in artifact.findings:
            fix = f" Fix: {finding.fix}" if finding.fix else ""
            for line in wrapped(f"{finding.severity} {finding.code}: {finding.message.rstrip('.')}.{fix}"):
                self.log.info("%s", line)
        size, took = size_text(artifact.size_bytes), seconds_text(artifact.export_wall_s)
        self.log.info("Exported by %s: %s, opset %d, in %s.", artifact.strategy, size, artifact.opset, took)
        self.log.info("sha256 %s", artifact.sha256)


def _require_servable(layouts: Any, artifact: OnnxArtifact, model_name: str) -> None:
    """Refuse a model that a model server cannot serve before it is compared and timed."""
    from onnx_release.serving.layouts import plan_layouts

    plan_layouts(layouts, artifact, model_name, uri="", max_batch_size=1)
