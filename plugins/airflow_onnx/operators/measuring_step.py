"""Base class of the operators that run PyTorch and ONNX Runtime side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_onnx import params
from airflow_onnx.deployment import settings
from airflow_onnx.operators.release_step import ReleaseStepOperator, StepRun
from airflow_onnx.tracking import pickle_permission
from airflow_onnx.tracking.release_inputs import ReleaseInputs, fetch_inputs
from onnx_release import limits
from onnx_release.limits import LatencyBudget, MeasurePlan, ParityLimits
from onnx_release.records.base import Record

if TYPE_CHECKING:
    from onnx_release.benchmark.setup import BenchmarkOptions


class _PrecisionLimits(Record):
    limits: dict[str, dict[str, Any]]


class MeasuringStepOperator(ReleaseStepOperator):
    """A step that compares and times an artifact.

    A lock of the host is held while it times: two measurements on one host would slow each other.

    :param artifact: the `OnnxArtifact` to measure.
    :param batch_sizes: the batch sizes to compare and time.
    :param parity: fields of `ParityLimits`, each a value or its JSON.
    :param precision_limits: fields of `ParityLimits` by precision, for artifacts of reduced precision.
    :param budget: fields of `LatencyBudget`, each a value or its JSON.
    :param plan: fields of `MeasurePlan`, each a value or its JSON.
    :param model_source: ``factory``, ``factory_kwargs``, ``weights_key`` and ``input_spec`` as in the export.
    :param inputs_uri: an ``.npz`` file of inputs to compare and time with (``s3://…``, ``runs:/…``), or empty.
    :param s3_conn_id: an Airflow connection of type `s3store` or `aws`, for such a file.
    """

    packages: ClassVar[tuple[str, ...]] = ("mlflow", "torch", "onnx", "onnxruntime")
    template_fields: Sequence[str] = (
        *ReleaseStepOperator.template_fields,
        "artifact",
        "batch_sizes",
        "parity",
        "precision_limits",
        "budget",
        "plan",
        "model_source",
        "inputs_uri",
        "s3_conn_id",
    )

    def __init__(
        self,
        *,
        artifact: Any,
        batch_sizes: Any = limits.BATCH_SIZES,
        parity: dict[str, Any] | None = None,
        precision_limits: Any = None,
        budget: dict[str, Any] | None = None,
        plan: dict[str, Any] | None = None,
        model_source: dict[str, Any] | None = None,
        inputs_uri: str = "",
        s3_conn_id: str = "minio_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.artifact = artifact
        self.batch_sizes = batch_sizes
        self.parity = parity
        self.precision_limits = precision_limits
        self.budget = budget
        self.plan = plan
        self.model_source = model_source
        self.inputs_uri = inputs_uri
        self.s3_conn_id = s3_conn_id

    def release_inputs(self, run: StepRun) -> ReleaseInputs:
        """Return the release's parameters about its model, completed by the tags of the training run."""
        return ReleaseInputs(run.hook, run.trained_model, self.model_source or {})

    def benchmark_options(self, run: StepRun, source: ReleaseInputs, scratch: Path) -> BenchmarkOptions:
        """Return the options of the benchmark; a file of inputs is downloaded into `scratch`."""
        from onnx_release.benchmark.setup import BenchmarkOptions
        from onnx_release.latency.host_lock import LockOptions

        parity = params.settings(ParityLimits, self.parity or {})
        if not parity.uncertainty_of:
            parity = parity.replace(uncertainty_of=source.uncertainty_of())
        return BenchmarkOptions(
            batch_sizes=params.integers(self.batch_sizes, "batch_sizes", 1, limits.BATCH_SIZE_MAX),
            parity_limits=parity,
            latency_budget=params.settings(LatencyBudget, self.budget or {}),
            measure_plan=params.settings(MeasurePlan, self.plan or {}),
            allow_pickle=pickle_permission.is_allowed(run.hook, run.trained_model.model_uri),
            pickle_memory_bytes=settings.pickle_memory_bytes(),
            pickle_user=settings.pickle_user(),
            factory=source.factory(),
            input_spec=source.input_spec(),
            inputs_path=fetch_inputs(run.hook, self.s3_conn_id, self.inputs_uri, scratch / "inputs"),
            reproduction_folder=str(scratch / "reproduction"),
            precision_limits=params.settings(_PrecisionLimits, {"limits": self.precision_limits or {}}).limits,
            lock=LockOptions(
                path=settings.measure_lock(),
                timeout_s=settings.measure_lock_timeout_s(),
                # Other tasks on this host log it while they wait.
                holder=f"{run.context['dag_run'].run_id}, task {self.task_id}",
            ),
        )
