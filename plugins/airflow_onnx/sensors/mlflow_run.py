"""Sensor that waits for the end of a training run and finds its trained model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue, conf

from airflow_onnx import outcome_log, parameter_checks, params, step_times
from airflow_onnx.errors import together
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.links import RerunLink, release_links
from airflow_onnx.operators.cancelled import EndsWhenCancelled
from airflow_onnx.task_outcome import airflow_outcome
from airflow_onnx.tracking import model_name, run_log, training_run
from airflow_onnx.triggers.mlflow_run import MlflowRunTrigger
from onnx_release.errors import Refused
from onnx_release.records import ReleaseReport, TrainedModel

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context

_CHECK = "The check of the parameters"


class MlflowTrainingRunSensor(EndsWhenCancelled, BaseSensorOperator):
    """Waits until the training run has finished with a PyTorch model; returns a `TrainedModel` as a dict.

    A run that failed, was killed or deleted, or has no PyTorch model fails the task without a retry. Airflow's
    `poke_interval` and `timeout` apply in both modes.

    :param training_run_id: the run's id in MLflow. Exactly one of this and `model_uri` is needed.
    :param model_uri: ``runs:/<run id>/<path>`` or ``models:/…``: releases this model of its run.
    :param logged_model_name: the run's logged model to release, for a run with several. Without it the tag
        ``onnx_release.logged_model_name`` of the run decides.
    :param model_name: the name of the registered model. Empty: from the tags of the run or its experiment, else made
        from the names of experiment and model.
    :param parameters: all parameters of the release as JSON, checked together before the wait. None: no check.
    :param log_to_run: set tags on the training run when the release begins, and log the report of a refusal to it.
    :param mlflow_conn_id: an Airflow connection of type `mlflow`.
    :param deferrable: wait in the triggerer, without a worker slot.
    """

    template_fields: Sequence[str] = (
        "training_run_id",
        "model_uri",
        "logged_model_name",
        "model_name",
        "parameters",
        "mlflow_conn_id",
    )
    operator_extra_links: Sequence[BaseOperatorLink] = release_links()

    def __init__(
        self,
        *,
        training_run_id: str = "",
        model_uri: str = "",
        logged_model_name: str = "",
        model_name: str = "",
        parameters: Any = None,
        log_to_run: bool = False,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.training_run_id = training_run_id
        self.model_uri = model_uri
        self.logged_model_name = logged_model_name
        self.model_name = model_name
        self.parameters = parameters
        self.log_to_run = log_to_run
        self.mlflow_conn_id = mlflow_conn_id
        self.deferrable = deferrable
        # By the name of the link: Airflow calls `get_link` on the worker after `execute`, with this same object.
        self.link_urls: dict[str, str] = {}
        # The first poke logs the start of the release to the run; later pokes do not.
        self._logged_start = False

    def execute(self, context: Context) -> Any:
        """Return the trained model, or defer until the run has ended."""
        if not self.deferrable:
            with airflow_outcome(context):
                return super().execute(context)
        training_run_id, trained_model = self._find(context)
        if trained_model is None:
            self.log.info("Training run %s is not finished; waiting in the triggerer.", training_run_id)
            self.defer(
                trigger=MlflowRunTrigger(
                    training_run_id=training_run_id,
                    mlflow_conn_id=self.mlflow_conn_id,
                    poll_interval_s=self.poke_interval,
                ),
                method_name="execute_complete",
                timeout=timedelta(seconds=self.timeout),
            )
        return trained_model

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Continue after the trigger. A timeout leaves its outcome for the teardown."""
        with airflow_outcome(context):
            return super().resume_execution(next_method, next_kwargs, context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Read the run again: the event has only its id."""
        self.log.info("Training run %s has ended.", event["training_run_id"])
        return self.execute(context)

    def poke(self, context: Context) -> PokeReturnValue:
        """Read the run once."""
        _, trained_model = self._find(context)
        return PokeReturnValue(is_done=trained_model is not None, xcom_value=trained_model)

    def _find(self, context: Context) -> tuple[str, dict[str, Any] | None]:
        """Return the run's id, and its trained model if the run has finished."""
        hook = MlflowHook(self.mlflow_conn_id)
        self.link_urls[RerunLink.name] = outcome_log.rerun_link(context)
        wrong = parameter_checks.problems(params.value(self.parameters) or {})
        with airflow_outcome(context):
            try:
                run_id, model_uri = training_run.resolve(
                    hook, self.training_run_id.strip() or None, self.model_uri.strip() or None
                )
            except Refused as error:
                if not wrong:
                    raise
                raise together(_CHECK, [error, *wrong]) from error

        def log_refusal(error: Refused) -> ReleaseReport:
            trained_model = TrainedModel(
                training_run_id=run_id,
                model_uri=self.model_uri,
                model_name=model_name.given_name_or_none(hook, run_id, self.model_name),
            )
            logged = run_log.log_refusal(hook, context, error, trained_model=trained_model)
            self.link_urls |= logged.link_urls
            return logged.report

        with airflow_outcome(context, log_refusal if self.log_to_run else None):
            if wrong:
                raise together(_CHECK, wrong)
            if self.log_to_run and not self._logged_start:
                run_log.log_start(hook, context, run_id)
                self._logged_start = True
            found = training_run.find_trained_model(hook, run_id, model_uri, self.logged_model_name.strip() or None)
            if found is not None:
                found = found.replace(model_name=model_name.find_name(hook, found, self.model_name))
        if found is None:
            return run_id, None
        step_times.leave_begin(context)
        self.link_urls |= run_log.link_urls(hook, context, found)
        return run_id, found.to_dict()
