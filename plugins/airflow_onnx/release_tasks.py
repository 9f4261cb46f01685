"""Tasks of one release, which templates connect: for a DAG of releases, or as a group in another DAG.

The ids of the tasks are fixed: the records of a task are found by the id of the task before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

from airflow.sdk import TriggerRule

from airflow_onnx import retries
from airflow_onnx.deployment import placement
from airflow_onnx.deployment.kubernetes import Place
from airflow_onnx.events.model_assets import RELEASED_VERSIONS
from airflow_onnx.events.notifications import ReleaseEndCallback
from airflow_onnx.operators.approve import OnnxApproveVersionOperator
from airflow_onnx.operators.check import OnnxCheckOperator
from airflow_onnx.operators.export import OnnxExportOperator
from airflow_onnx.operators.parity_latency import OnnxParityLatencyOperator
from airflow_onnx.operators.promote import MlflowPromoteModelOperator
from airflow_onnx.operators.register import MlflowRegisterOnnxOperator
from airflow_onnx.operators.tune import OnnxTuneOperator
from airflow_onnx.operators.upload import TARGET_KEY, OnnxUploadToS3Operator
from airflow_onnx.operators.work_folder import CleanWorkFolderOperator, PrepareWorkFolderOperator
from airflow_onnx.params import json_param, json_params, task_record, task_text, text_params
from airflow_onnx.sensors.mlflow_run import MlflowTrainingRunSensor
from onnx_release import limits

# Only the tuning and the comparison with a champion use the sample.
_EVALUATION_URI = "{{ params.evaluation_uri or '' if params.tune or params.promotion != 'candidate' else '' }}"
ALL_PARAMETERS = "{{ params | tojson }}"


@dataclass(frozen=True, kw_only=True)
class ReleaseTasks:
    """The tasks of one release, each made by a method.

    :param parameters: the template of all parameters, which the first task checks together.
    :param dag_bucket: the bucket that the DAG file names; empty for none.
    :param training_run_id: the id of the training run, or its template; likewise `model_uri`.
    :param places: the placement by kind of task.
    :param outlets: more assets that get an event when a version is promoted.
    :param ended: the callback for the end of the teardown, which is the end of the release.
    """

    parameters: str = ALL_PARAMETERS
    dag_bucket: str = ""
    training_run_id: Any = "{{ params.training_run_id or '' }}"
    model_uri: Any = "{{ params.model_uri or '' }}"
    places: Mapping[str, Place]
    wait_timeout: timedelta
    outlets: Sequence[Any]
    ended: ReleaseEndCallback

    def connect(self) -> None:
        """Make all tasks in the current DAG or task group, one after the other."""
        wait, prepare = self.wait(), self.prepare()
        tasks = [
            wait, prepare, self.export(), self.tune(), self.check(), self.parity_latency(), self.upload(),
            self.register(), self.approve(), self.promote(), self.clean(prepare),
        ]  # fmt: skip
        for task, following in pairwise(tasks):
            task >> following

    def wait(self) -> Any:
        """Return the task that waits for the end of the training run."""
        return MlflowTrainingRunSensor(
            task_id="wait_for_training",
            parameters=self.parameters,
            poke_interval=5,
            timeout=self.wait_timeout.total_seconds(),
            deferrable=True,
            log_to_run=True,
            **self._run,
            **text_params("model_name", "logged_model_name", "mlflow_conn_id"),
        )

    def prepare(self) -> Any:
        """Return the set-up: the checks before the export, and the work folder."""
        return PrepareWorkFolderOperator(
            task_id="prepare_work",
            dag_bucket=self.dag_bucket,
            files={**text_params("inputs_uri"), "evaluation_uri": _EVALUATION_URI},
            model_source=self._source,
            **self._destination,
            **self._step,
            **self._store,
        ).as_setup()

    def export(self) -> Any:
        """Return the task that exports the model."""
        return OnnxExportOperator(
            task_id="export",
            work_uri=task_text("prepare_work"),
            model_source=self._source,
            optional_tasks=json_params("tune"),
            evaluation_uri=_EVALUATION_URI,
            **json_params("opset", "single_file_max_bytes", "reference_max_bytes", "serving_layouts"),
            **text_params("device", "inputs_uri"),
            **self._place(placement.EXPORT),
            **self._step,
            **self._store,
        )

    def tune(self) -> Any:
        """Return the task that tries other variants on request."""
        return OnnxTuneOperator(
            task_id="tune",
            # Without tuning Airflow shows this task as skipped. Running it as a pass-through would cost each release a
            # process, and a wait for the measuring slot.
            task_display_name="tune (on request)",
            artifact=task_record("export"),
            work_uri=task_text("prepare_work"),
            enabled=json_param("tune"),
            precisions=json_param("tune_precisions"),
            max_s=json_param("tune_max_s"),
            **json_params("metric_loss_max", "allowed_domains", "opset", "single_file_max_bytes"),
            **text_params("alias", "stage"),
            **self._measuring,
            **self._step,
            **self._store,
        )

    def check(self) -> Any:
        """Return the task with the static checks."""
        return OnnxCheckOperator(
            task_id="check",
            artifact=self._artifact,
            # The task `tune` is skipped unless the parameter `tune` is true.
            trigger_rule=TriggerRule.NONE_FAILED,
            **json_params("allowed_domains"),
            **text_params("stage"),
            **self._policy,
            **self._step,
            **self._store,
        )

    def parity_latency(self) -> Any:
        """Return the task that compares the model with PyTorch's and times both."""
        return OnnxParityLatencyOperator(
            task_id="parity_latency",
            dag_bucket=self.dag_bucket,
            artifact=self._artifact,
            check=task_record("check"),
            margins={"margin": json_param("champion_margin"), **json_params("metric_loss_max")},
            target_runtimes=json_param("target_runtimes"),
            **self._policy,
            **self._measuring,
            **self._step,
            **self._store,
        )

    def upload(self) -> Any:
        """Return the task that stores the model."""
        return OnnxUploadToS3Operator(
            task_id="upload",
            dag_bucket=self.dag_bucket,
            serving_layouts=json_param("serving_layouts"),
            **self._destination,
            **self._accepted,
            **self._step,
            **self._store,
        )

    def register(self) -> Any:
        """Return the task that makes the version."""
        return MlflowRegisterOnnxOperator(
            task_id="register",
            artifact=self._artifact,
            uploaded=task_record("upload"),
            policy=self._policy["policy"],
            approval_task="approve",
            **self._step,
            **self._store,
        )

    def approve(self) -> Any:
        """Return the task that waits for a person if a move needs it."""
        return OnnxApproveVersionOperator(
            task_id="approve",
            task_display_name="approve (on request)",
            version=task_record("register"),
            timeout_h=json_param("approval_timeout_h"),
            # Repeated when a person answers in its first seconds: the answer must not be the end of the release.
            **retries.many(),
            **self._policy,
            **self._accepted,
            **self._step,
            **self._store,
        )

    def promote(self) -> Any:
        """Return the task that moves the aliases."""
        return MlflowPromoteModelOperator(
            task_id="promote",
            uploaded=task_record("upload"),
            version=task_record("register"),
            given=task_record("approve"),
            outlets=self._promotion_outlets,
            # One promotion at a time needs no wait for the lock of its model, and a slow MLflow cannot mix two.
            max_active_tis_per_dag=1,
            # The task `approve` is skipped unless a move needs an approval.
            trigger_rule=TriggerRule.NONE_FAILED,
            **text_params("stage"),
            **self._policy,
            **self._accepted,
            **self._step,
            **self._store,
        )

    def clean(self, prepare: Any) -> Any:
        """Return the teardown of the work folder."""
        clean = CleanWorkFolderOperator(
            task_id="clean_work",
            work_uri=task_text("prepare_work"),
            target_uri=task_text("upload", TARGET_KEY),
            version=task_record("promote"),
            promotion_outlets=self._promotion_outlets,
            on_success_callback=self.ended,
            on_failure_callback=self.ended,
            **self._run,
            **self._destination,
            **self._trained,
            **self._store,
            **retries.many(),
        ).as_teardown(setups=prepare)
        # Not `ALL_DONE_SETUP_SUCCESS`: a failure of the sensor or of the setup is recorded too.
        clean.trigger_rule = TriggerRule.ALL_DONE
        return clean

    @property
    def _promotion_outlets(self) -> list[Any]:
        return [RELEASED_VERSIONS, *self.outlets]

    @property
    def _run(self) -> dict[str, Any]:
        return {"training_run_id": self.training_run_id, "model_uri": self.model_uri}

    @property
    def _trained(self) -> dict[str, Any]:
        return {"trained_model": task_record("wait_for_training"), **text_params("mlflow_conn_id")}

    @property
    def _step(self) -> dict[str, Any]:
        return {**self._trained, "log_to_run": True}

    @property
    def _store(self) -> dict[str, Any]:
        return text_params("s3_conn_id")

    @property
    def _destination(self) -> dict[str, Any]:
        return text_params("bucket", "prefix")

    @property
    def _source(self) -> dict[str, Any]:
        """The source of the model for each step that loads it."""
        return {**text_params("factory", "weights_key"), **json_params("factory_kwargs", "input_spec")}

    @property
    def _artifact(self) -> str:
        """The artifact of the tuning, or of the export without it."""
        return task_record("tune", otherwise="export")

    @property
    def _accepted(self) -> dict[str, Any]:
        """The artifact with the reports about it."""
        return {
            "artifact": self._artifact, "check": task_record("check"), "benchmark": task_record("parity_latency"),
        }  # fmt: skip

    @property
    def _policy(self) -> dict[str, Any]:
        """The fields of `PromotionPolicy` and `MoveRules`."""
        return {
            "policy": text_params("promotion", "alias", "champion_alias"),
            "rules": {**text_params("contract_change"), **json_params("alias_back")},
        }

    @property
    def _measuring(self) -> dict[str, Any]:
        """The common arguments of the tasks that compare and time models."""
        return {
            "parity": json_params(*limits.ParityLimits.model_fields),
            "budget": {
                "batch_size": json_param("serving_batch_size"),
                **json_params("speedup_min", "speedup_goal", "p95_max_ms", "on_miss"),
            },
            "plan": json_params("threads", "measure_max_s"),
            "model_source": self._source,
            **json_params("batch_sizes", "precision_limits"),
            **text_params("inputs_uri", "evaluation_uri"),
            # The pool has one slot per measuring host: two measurements at the same time would disturb each other.
            **self._place(placement.MEASURE),
        }

    def _place(self, kind: str) -> dict[str, Any]:
        return placement.arguments(kind, self.places)
