"""Base classes of the operators of a release."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

from airflow_onnx import params, step_times
from airflow_onnx.events import lineage
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.links import release_links
from airflow_onnx.operators.acceptance import JudgedArtifact, accepted_report
from airflow_onnx.operators.cancelled import EndsWhenCancelled
from airflow_onnx.preflight.packages import require_packages
from airflow_onnx.task_outcome import airflow_outcome
from airflow_onnx.tracking import run_log
from airflow_onnx.tracking.promotion import MoveRules, Promoter
from onnx_release.errors import Refused
from onnx_release.records import ReleaseReport, TrainedModel
from onnx_release.records.base import Record
from onnx_release.training_runs.names import validate_model_name

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRun:
    """One execution of a step.

    :param evidence: the records so far, by the fields of `ReleaseReport`. They are logged if the step is refused.
    """

    context: Context
    hook: MlflowHook
    trained_model: TrainedModel
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        """The name of the registered model, which `wait_for_training` found."""
        return validate_model_name(self.trained_model.model_name or "")

    def promoter(self, s3_conn_id: str, rules: dict[str, Any] | None) -> Promoter:
        """Return the decisions about the aliases and the stage of the model.

        :param rules: fields of `MoveRules`, each a value or its JSON.
        """
        return Promoter(hook=self.hook, s3_conn_id=s3_conn_id, rules=params.settings(MoveRules, rules or {}))


class ReleaseStepOperator(EndsWhenCancelled, BaseOperator, abc.ABC):
    """One step of a release. A subclass implements `release`; the record that it returns is a dict in XCom.

    A refusal fails the task without a retry.

    :param trained_model: the `TrainedModel` that the sensor returned.
    :param log_to_run: log the report of a refusal, and all evidence so far, to the training run in MLflow.
    :param mlflow_conn_id: an Airflow connection of type `mlflow`.
    """

    # The step needs these on its worker.
    packages: ClassVar[tuple[str, ...]] = ("mlflow",)
    template_fields: Sequence[str] = ("trained_model", "mlflow_conn_id")
    operator_extra_links: Sequence[BaseOperatorLink] = release_links()

    def __init__(
        self,
        *,
        trained_model: Any,
        log_to_run: bool = False,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.trained_model = trained_model
        self.log_to_run = log_to_run
        self.mlflow_conn_id = mlflow_conn_id
        # By the name of the link: Airflow calls `get_link` on the worker after `execute`, with this same object.
        self.link_urls: dict[str, str] = {}
        self.result: Record | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the step and return its record as a dict."""
        return self.run_step(context, self.release)

    def run_step(self, context: Context, step: Callable[[StepRun], Record]) -> dict[str, Any]:
        """Run a part of the step. A refusal is logged to the training run on request."""
        with airflow_outcome(context):
            step_times.leave_begin(context)
            trained_model = params.record(TrainedModel, self.trained_model, "wait_for_training")
        run = StepRun(context=context, hook=MlflowHook(self.mlflow_conn_id), trained_model=trained_model)

        def log_refusal(error: Refused) -> ReleaseReport:
            logged = run_log.log_refusal(run.hook, context, error, trained_model=trained_model, **run.evidence)
            self.link_urls |= logged.link_urls
            return logged.report

        with airflow_outcome(context, log_refusal if self.log_to_run else None):
            self.link_urls |= run_log.link_urls(run.hook, context, trained_model)
            require_packages(self.packages)
            self.result = step(run)
            return self.result.to_dict()

    def get_openlineage_facets_on_complete(self, _task_instance: Any) -> Any:
        """Return the datasets of the step. Airflow's OpenLineage provider calls it after `execute`, if installed."""
        trained_model = params.optional_record(TrainedModel, self.trained_model)
        return lineage.operator_lineage(MlflowHook(self.mlflow_conn_id).server, trained_model, self.result)

    @abc.abstractmethod
    def release(self, run: StepRun) -> Record:
        """Do the work of the step.

        :raises Refused: if a retry would give the same result.
        :raises Transient: if a later try may succeed.
        """


class AcceptedStepOperator(ReleaseStepOperator):
    """A step that needs an accepted artifact: every report exists, passed, and belongs to its sha256.

    :param artifact: the `OnnxArtifact` that the tuning returned.
    :param check: its `CheckReport`.
    :param benchmark: its `BenchmarkReport`.
    :param s3_conn_id: an Airflow connection of type `s3store` or `aws`; docs/connections.md lists the extras for MinIO.
    """

    template_fields: Sequence[str] = (
        *ReleaseStepOperator.template_fields,
        "artifact",
        "check",
        "benchmark",
        "s3_conn_id",
    )

    def __init__(
        self, *, artifact: Any, check: Any, benchmark: Any, s3_conn_id: str = "minio_default", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.artifact = artifact
        self.check = check
        self.benchmark = benchmark
        self.s3_conn_id = s3_conn_id

    def accepted_report(self, run: StepRun) -> tuple[JudgedArtifact, ReleaseReport]:
        """Return the artifact with its reports, and the release report made of them.

        :raises ReportRefused: if the artifact is not accepted.
        """
        judged = JudgedArtifact.read(self.artifact, self.check, self.benchmark)
        run.evidence.update(judged.evidence())
        return judged, accepted_report(run.context, run.trained_model, judged)
