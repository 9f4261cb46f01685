"""Set-up and tear-down of a release: the work folder, and objects of unfinished releases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow.sdk import AssetAlias, BaseOperator
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_onnx import dag_runs, defaults, outcome_log, params, run_notes, step_times, validation
from airflow_onnx.deployment import buckets, settings
from airflow_onnx.errors import StorageRefused
from airflow_onnx.events import model_assets
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.links import RerunLink, release_links
from airflow_onnx.log_lines import wrapped
from airflow_onnx.operators.cancelled import EndsWhenCancelled
from airflow_onnx.operators.promote import HEADLINE_KEY
from airflow_onnx.preflight.release import Preflight
from airflow_onnx.preflight.store import sweep
from airflow_onnx.storage import s3, serving_layouts, staging
from airflow_onnx.task_outcome import TaskOutcome, airflow_outcome, dag_run_outcome
from airflow_onnx.tracking import model_registry, run_log, training_run, unrecorded
from onnx_release.errors import Refused, ReleaseError
from onnx_release.records import ModelVersion, ReleaseReport, TrainedModel

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context


class PrepareWorkFolderOperator(EndsWhenCancelled, BaseOperator):
    """Checks everything that a release needs, creates its work folder, and removes old folders of unfinished releases.

    Returns the URI of the work folder. Packages, bucket, keys and files are checked here: see `Preflight`.

    :param trained_model: the `TrainedModel` that the sensor returned.
    :param bucket: the bucket of the upload; likewise `prefix`, the folder in it.
    :param dag_bucket: the bucket that the DAG file names, which is allowed besides those of the deployment. None:
        `bucket`, unless it is a template.
    :param files: URIs of the user's ``.npz`` files by the parameter of the release.
    :param model_source: as in `OnnxExportOperator`, for the names of the model's inputs.
    :param mlflow_conn_id: an Airflow connection of type `mlflow`.
    :param s3_conn_id: an Airflow connection of type `s3store` or `aws`.
    :param keep_s: the age in seconds at which the folder of an unfinished release is removed.
    :param log_to_run: log the report of a refusal to the training run in MLflow.
    """

    template_fields: Sequence[str] = (
        "trained_model",
        "bucket",
        "prefix",
        "files",
        "model_source",
        "mlflow_conn_id",
        "s3_conn_id",
    )
    operator_extra_links: Sequence[BaseOperatorLink] = release_links()

    def __init__(
        self,
        *,
        trained_model: Any,
        bucket: str,
        dag_bucket: str | None = None,
        prefix: str = "",
        files: dict[str, str] | None = None,
        model_source: dict[str, Any] | None = None,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        s3_conn_id: str = "minio_default",
        keep_s: float = defaults.WORK_KEEP_S,
        log_to_run: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.trained_model = trained_model
        self.bucket = bucket
        self.dag_bucket = buckets.in_dag_file(bucket) if dag_bucket is None else dag_bucket
        self.prefix = prefix
        self.files = files
        self.model_source = model_source
        self.mlflow_conn_id = mlflow_conn_id
        self.s3_conn_id = s3_conn_id
        self.keep_s = keep_s
        self.log_to_run = log_to_run
        # As in `ReleaseStepOperator`.
        self.link_urls: dict[str, str] = {}

    def execute(self, context: Context) -> str:
        """Check, create the work folder and return its URI."""
        with airflow_outcome(context):
            step_times.leave_begin(context)
            trained_model = params.record(TrainedModel, self.trained_model, "wait_for_training")
        hook = MlflowHook(self.mlflow_conn_id)

        def log_refusal(error: Refused) -> ReleaseReport:
            logged = run_log.log_refusal(hook, context, error, trained_model=trained_model)
            self.link_urls |= logged.link_urls
            return logged.report

        run: Any = context["dag_run"]
        with airflow_outcome(context, log_refusal if self.log_to_run else None):
            self.link_urls |= run_log.link_urls(hook, context, trained_model)
            buckets.require_allowed(self.bucket, self.dag_bucket)
            Preflight(
                hook=hook,
                trained_model=trained_model,
                bucket=self.bucket,
                prefix=self.prefix,
                s3_conn_id=self.s3_conn_id,
                files=self.files or {},
                model_source=self.model_source or {},
                owner=dag_runs.owner(context),
            ).run()
            root_uri = staging.staging_root_uri(settings.staging_uri(), self.prefix)
            uri = staging.work_folder_uri(root_uri, run.dag_id, run.run_id)
            staging.open_staging(uri).prepare(self.keep_s)
        return uri


class CleanWorkFolderOperator(EndsWhenCancelled, BaseOperator):
    """Ends a release: removes its work folder, or records the failure and removes the objects that no version names.

    After a failure the training run gets the status ``failed``, the reason and the DAG run, unless a task has recorded
    a refusal. If the promotion failed after it moved an alias, the training run gets the status ``released``: see
    `tracking.unrecorded`. The work folder then stays for the `keep_s` of `PrepareWorkFolderOperator`: a cleared task
    reads the results of the tasks before it. During an outage of MLflow or the store the task retries.

    :param work_uri: the folder that `PrepareWorkFolderOperator` returned, or empty if it failed.
    :param trained_model: the `TrainedModel`, or empty if the sensor failed.
    :param training_run_id: the parameter of the release, for a release whose sensor failed; likewise `model_uri`.
    :param target_uri: the ``s3://`` folder of this DAG run's upload, or empty if none began. Objects are removed only
        if it is a folder of the training run's releases below `bucket` and `prefix`.
    :param version: the result of the promotion, or empty.
    :param promotion_outlets: the outlets of the promotion. They get its events if this task records it.
    :param mlflow_conn_id: an Airflow connection of type `mlflow`.
    :param s3_conn_id: the connection that the upload used.
    """

    template_fields: Sequence[str] = (
        "work_uri",
        "trained_model",
        "training_run_id",
        "model_uri",
        "target_uri",
        "bucket",
        "prefix",
        "version",
        "mlflow_conn_id",
        "s3_conn_id",
    )
    operator_extra_links: Sequence[BaseOperatorLink] = release_links()

    def __init__(
        self,
        *,
        work_uri: str,
        trained_model: Any,
        target_uri: str,
        bucket: str,
        version: Any,
        promotion_outlets: Sequence[Any] = (),
        prefix: str = "",
        training_run_id: str = "",
        model_uri: str = "",
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        s3_conn_id: str = "minio_default",
        **kwargs: Any,
    ) -> None:
        aliases = [one for one in promotion_outlets if isinstance(one, AssetAlias)]
        super().__init__(outlets=[*aliases, model_assets.RECORDED_PROMOTIONS], **kwargs)
        self.promotion_outlets = promotion_outlets
        self.work_uri = work_uri
        self.trained_model = trained_model
        self.training_run_id = training_run_id
        self.model_uri = model_uri
        self.target_uri = target_uri
        self.bucket = bucket
        self.prefix = prefix
        self.version = version
        self.mlflow_conn_id = mlflow_conn_id
        self.s3_conn_id = s3_conn_id
        self.link_urls: dict[str, str] = {}

    def execute(self, context: Context) -> dict[str, Any] | None:
        """Remove the work folder of a release. Record an unfinished one and remove its objects.

        Returns the version that it recorded for an unfinished promotion.
        """
        with airflow_outcome():
            hook = MlflowHook(self.mlflow_conn_id)
            trained_model = params.optional_record(TrainedModel, self.trained_model)
            self.link_urls[RerunLink.name] = outcome_log.rerun_link(context)
            if trained_model:
                self.link_urls |= run_log.link_urls(hook, context, trained_model)
            if params.optional_record(ModelVersion, self.version):
                self._leave_note(context, trained_model, context["ti"].xcom_pull(task_ids="promote", key=HEADLINE_KEY))
                staging.open_staging(self.work_uri).remove()
                return None
            outcome = dag_run_outcome(context)
            if self.target_uri and trained_model:
                folder = s3.folder_at(self.s3_conn_id, self.target_uri)
                if found := unrecorded.record_release(hook, context, trained_model, folder, outcome.reason):
                    released, report = found
                    self._leave_note(context, trained_model, f"Released: version {released.version}.")
                    model_assets.add_events_of_recorded(context, self.promotion_outlets, released, report)
                    return released.to_dict()
            self._record(hook, context, trained_model, outcome)
            if trained_model and trained_model.model_name:
                run_id = trained_model.training_run_id
                of_run = validation.run_folder_uri(self.bucket, self.prefix, trained_model.model_name, run_id)
                # Without the store or its keys, the garbage collection removes it.
                with suppress(ReleaseError, AirflowNotFoundException):
                    sweep(s3.folder_at(self.s3_conn_id, of_run), dag_runs.owner(context))
                if self.target_uri:
                    self._remove_unnamed_objects(hook, trained_model, of_run)
            return None

    def _leave_note(self, context: Context, trained_model: TrainedModel | None, headline: str | None) -> None:
        """Leave the note of the DAG run for Airflow's scheduler: see `run_notes`."""
        if trained_model and headline:
            run_id, model_name = trained_model.training_run_id, trained_model.model_name
            lines = run_notes.title(trained_model.run_name, run_id, model_name), run_notes.result(headline)
            context["ti"].xcom_push(key=run_notes.XCOM_KEY, value="\n".join(lines))

    def _record(
        self, hook: MlflowHook, context: Context, trained_model: TrainedModel | None, outcome: TaskOutcome
    ) -> None:
        for line in wrapped(outcome.headline):
            self.log.warning("%s", line)
        self._leave_note(context, trained_model, outcome.headline)
        try:
            if trained_model:
                run_id = trained_model.training_run_id
            else:
                run_id, _ = training_run.resolve(hook, self.training_run_id.strip(), self.model_uri.strip())
            run_log.log_end(hook, context, run_id, outcome)
        except Refused as failure:
            # For example a wrong run id: no training run can have the record.
            self.log.warning("The outcome is not recorded in MLflow: %s", failure)

    def _remove_unnamed_objects(self, hook: MlflowHook, trained_model: TrainedModel, of_run: str) -> None:
        name, run_id = trained_model.model_name or "", trained_model.training_run_id
        if not re.fullmatch(rf"{re.escape(of_run)}/[0-9a-f]{{{defaults.SHA_PREFIX_LENGTH}}}", self.target_uri):
            raise StorageRefused(
                f"The folder {self.target_uri!r:.200}",
                f"is not a folder of an artifact in {of_run}",
                "Nothing was deleted: check the task's parameters 'bucket', 'prefix' and 'target_uri'.",
                code="not_an_artifact_folder",
            )
        if model_registry.of_source(hook, name, run_id, self.target_uri):
            self.log.info("A version of '%s' names %s; the objects stay.", name, self.target_uri)
            return
        target = s3.folder_at(self.s3_conn_id, self.target_uri)
        for folder in (target, serving_layouts.layouts_folder(target)):
            paths = sorted(s3.sizes(folder))
            s3.remove(folder, paths)
            if paths or folder is target:
                self.log.info("Removed %d objects at %s: no version names them.", len(paths), folder.uri)
