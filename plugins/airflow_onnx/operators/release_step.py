"""What every step of a release shares: the trained model it is about, and what happens when it is refused."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_onnx import params
from airflow_onnx.errors import airflow_outcome
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.operators.acceptance import Judged, accepted_report
from airflow_onnx.tracking import run_log
from onnx_release.errors import Refused
from onnx_release.records import ReleaseReport, TrainedModel
from onnx_release.records.base import Record

if TYPE_CHECKING:
    from airflow.sdk import Context


class ReleaseStepOperator(BaseOperator, abc.ABC):
    """One step of a release; a subclass writes `release` and returns a record, which XCom carries as a dict.

    A refusal fails the task for good and leaves the report so far on the training run in MLflow.

    :param trained: the `TrainedModel` that the sensor returned.
    :param model_name: the registered model's name.
    """

    template_fields: Sequence[str] = ("trained", "model_name", "mlflow_conn_id")

    def __init__(
        self,
        *,
        trained: Any,
        model_name: str,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.trained = trained
        self.model_name = model_name
        self.mlflow_conn_id = mlflow_conn_id

    @cached_property
    def hook(self) -> MlflowHook:
        """The MLflow hook of this step."""
        return MlflowHook(self.mlflow_conn_id)

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the step; the records it gathers on its way are the evidence if it is refused."""
        self.gathered: dict[str, Any] = {}
        self.link_urls: dict[str, str] = {}
        with airflow_outcome(lambda error: self._leave_refusal(context, error)):
            self.training = params.record(TrainedModel, self.trained, "wait_for_training")
            return self.release(context).to_dict()

    @abc.abstractmethod
    def release(self, context: Context) -> Record:
        """Do the step's work; raise `Refused` or `Transient`."""

    def _leave_refusal(self, context: Context, error: Refused) -> None:
        if training := getattr(self, "training", None):
            run_log.log_refusal(
                self.hook, context, error, model_name=self.model_name, trained_model=training, **self.gathered
            )


class AcceptedStepOperator(ReleaseStepOperator):
    """A step that acts on judged bytes, and only when every report passed and speaks of them.

    :param artifact: the `OnnxArtifact` that the tuning returned.
    :param check: its `CheckReport`.
    :param benchmark: its `BenchmarkReport`.
    :param s3_conn_id: an Airflow connection of type `aws`; see docs/connections.md for MinIO's extras.
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

    def accepted_report(self, context: Context) -> ReleaseReport:
        """Read the three records, keep them as evidence, and return the report; `Refused` unless all is well."""
        judged = Judged.read(self.artifact, self.check, self.benchmark)
        self.gathered |= judged.parts()
        return accepted_report(context, self.model_name, self.training, judged)
