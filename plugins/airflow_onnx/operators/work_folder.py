"""The work folder of one release: made before the first step, put away after the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_onnx import defaults, params
from airflow_onnx.deployment import settings
from airflow_onnx.errors import airflow_outcome
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import s3, staging
from airflow_onnx.tracking import model_registry
from onnx_release.records import ModelVersion, TrainedModel

if TYPE_CHECKING:
    from airflow.sdk import Context


class PrepareWorkFolderOperator(BaseOperator):
    """Makes the DAG run's work folder and returns its URI; sweeps folders of releases that were never finished.

    :param keep_s: how long such a folder is kept, in seconds.
    """

    def __init__(self, *, keep_s: float = defaults.WORK_KEEP_S, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keep_s = keep_s

    def execute(self, context: Context) -> str:
        """Return the work folder's URI."""
        run: Any = context["dag_run"]
        uri = staging.work_folder_uri(settings.staging_uri(), run.dag_id, run.run_id)
        with airflow_outcome():
            staging.open_staging(uri).prepare(self.keep_s)
        return uri


class CleanWorkFolderOperator(BaseOperator):
    """Puts the work away: the folder after a release, the objects that no version names after a failure.

    After a failure the folder stays for `keep_s` of `PrepareWorkFolderOperator`, so that clearing the failed
    task finds what the tasks before it made. The objects stay while MLflow cannot be asked whether a version names
    them; the task then retries.

    :param work_uri: the folder that `PrepareWorkFolderOperator` returned.
    :param trained: the `TrainedModel`, if the sensor got that far.
    :param target_uri: the ``s3://`` folder that the upload of this DAG run began to fill, if it did.
    :param version: what the promotion returned, if it did.
    """

    template_fields: Sequence[str] = (
        "work_uri",
        "trained",
        "target_uri",
        "version",
        "model_name",
        "mlflow_conn_id",
        "s3_conn_id",
    )

    def __init__(
        self,
        *,
        work_uri: str,
        trained: Any,
        target_uri: str,
        version: Any,
        model_name: str,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        s3_conn_id: str = "minio_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.work_uri = work_uri
        self.trained = trained
        self.target_uri = target_uri
        self.version = version
        self.model_name = model_name
        self.mlflow_conn_id = mlflow_conn_id
        self.s3_conn_id = s3_conn_id

    def execute(self, context: Context) -> None:
        """Clean up according to how far the release came."""
        with airflow_outcome():
            if params.optional_record(ModelVersion, self.version):
                staging.open_staging(self.work_uri).remove()
            elif self.target_uri:
                self._remove_unnamed_objects(params.record(TrainedModel, self.trained, "wait_for_training"))

    def _remove_unnamed_objects(self, training: TrainedModel) -> None:
        hook = MlflowHook(self.mlflow_conn_id)
        if model_registry.has_source(hook, self.model_name, training.training_run_id, self.target_uri):
            self.log.info("A version of '%s' names %s; the objects stay.", self.model_name, self.target_uri)
            return
        folder = s3.folder_at(self.s3_conn_id, self.target_uri)
        paths = sorted(s3.sizes(folder))
        s3.remove(folder, paths)
        self.log.info("Removed %d objects at %s: no version names them.", len(paths), self.target_uri)
