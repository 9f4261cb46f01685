"""Waits for the end of a training run and says which model it left."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_onnx import params
from airflow_onnx.errors import airflow_outcome
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.links import TrainingRunLink
from airflow_onnx.tracking import run_log, training_run
from airflow_onnx.triggers.mlflow_run import MlflowRunTrigger
from onnx_release.errors import Refused
from onnx_release.records import TrainedModel

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context


class MlflowTrainingRunSensor(BaseSensorOperator):
    """Passes when the training run has finished and holds a PyTorch model; returns a `TrainedModel` as a dict.

    A run that finished long ago passes at once. One that failed, was killed or deleted, or holds no PyTorch model
    fails the task for good, with the reason. While the run goes on the task waits in the triggerer and holds no
    worker slot (``deferrable=False`` pokes from a worker instead).

    :param training_run_id: the run's id in MLflow; exactly one of this and `model_uri` is given.
    :param model_uri: ``runs:/<run id>/<path>`` or ``models:/…``: releases this very model of the run it belongs to.
    :param model_name: the registered model's name, under which a refusal is filed on the run.
    :param poll_interval_s: seconds between two looks at the run.
    :param wait_timeout_h: hours to wait for a run that goes on; takes the place of the sensor's own `timeout`.
    """

    template_fields: Sequence[str] = ("training_run_id", "model_uri", "model_name", "mlflow_conn_id", "wait_timeout_h")
    operator_extra_links: Sequence[BaseOperatorLink] = (TrainingRunLink(),)

    def __init__(
        self,
        *,
        training_run_id: str = "",
        model_uri: str = "",
        model_name: str,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        poll_interval_s: float = 5.0,
        wait_timeout_h: Any = 24.0,
        deferrable: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.training_run_id = training_run_id
        self.model_uri = model_uri
        self.model_name = model_name
        self.mlflow_conn_id = mlflow_conn_id
        self.poll_interval_s = poll_interval_s
        self.wait_timeout_h = wait_timeout_h
        self.deferrable = deferrable
        # A sensor that pokes looks many times, and says once that it does.
        self._announced = False

    def execute(self, context: Context) -> Any:
        """Return the trained model, or defer until the run has ended."""
        self.timeout = float(params.value(self.wait_timeout_h)) * 3600.0
        if not self.deferrable:
            return super().execute(context)
        trained = self._look(context)
        if trained is None:
            self.log.info("Training run %s goes on; waiting for its end.", self._run_id)
            self.defer(
                trigger=MlflowRunTrigger(
                    training_run_id=self._run_id,
                    mlflow_conn_id=self.mlflow_conn_id,
                    poll_interval_s=self.poll_interval_s,
                ),
                method_name="execute_complete",
                timeout=timedelta(seconds=self.timeout),
            )
        return trained

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Look at the run anew: the event is only a bell."""
        self.log.info("Training run %s has ended.", event["training_run_id"])
        return self.execute(context)

    def poke(self, context: Context) -> PokeReturnValue:
        """Look once; used when the sensor is not deferrable."""
        trained = self._look(context)
        return PokeReturnValue(is_done=trained is not None, xcom_value=trained)

    def _look(self, context: Context) -> dict[str, Any] | None:
        hook = MlflowHook(self.mlflow_conn_id)
        self._run_id = ""
        with airflow_outcome(lambda error: self._leave_refusal(hook, context, error)):
            self._run_id, model_uri = training_run.resolve(
                hook, self.training_run_id.strip() or None, self.model_uri.strip() or None
            )
            if not self._announced:
                run_log.log_start(hook, context, self._run_id)
                self._announced = True
            trained = training_run.find_trained_model(hook, self._run_id, model_uri)
        if trained is None:
            return None
        self.link_urls = {TrainingRunLink.name: hook.server.run_url(trained.experiment_id, self._run_id)}
        return trained.to_dict()

    def _leave_refusal(self, hook: MlflowHook, context: Context, error: Refused) -> None:
        if self._run_id:
            trained = TrainedModel(training_run_id=self._run_id, model_uri=self.model_uri)
            run_log.log_refusal(hook, context, error, model_name=self.model_name, trained_model=trained)
