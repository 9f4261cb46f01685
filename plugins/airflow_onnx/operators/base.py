"""What every step of a release shares: the trained model it is about, and what happens when it is refused."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_onnx import evidence, rendered
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.outcomes import airflow_outcome
from onnx_release.errors import Refused
from onnx_release.records import Record, TrainedModel

if TYPE_CHECKING:
    from airflow.sdk import Context


class ReleaseOperator(BaseOperator, abc.ABC):
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
            self.training = rendered.record(TrainedModel, self.trained, "wait_for_training")
            return self.release(context).to_dict()

    @abc.abstractmethod
    def release(self, context: Context) -> Record:
        """Do the step's work; raise `Refused` or `Transient`."""

    def _leave_refusal(self, context: Context, error: Refused) -> None:
        if training := getattr(self, "training", None):
            evidence.leave_refusal(
                self.hook, context, error, model_name=self.model_name, training=training, **self.gathered
            )
