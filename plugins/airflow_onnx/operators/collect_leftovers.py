"""Operator of the garbage collection: objects, uploads, folders and versions that a crash left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_onnx import dag_runs, defaults, params
from airflow_onnx.deployment import buckets
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.leftovers import table
from airflow_onnx.leftovers.collect import collect
from airflow_onnx.operators.cancelled import EndsWhenCancelled
from airflow_onnx.task_outcome import airflow_outcome

if TYPE_CHECKING:
    from airflow.sdk import Context


class CollectLeftoversOperator(EndsWhenCancelled, BaseOperator):
    """Finds the leftovers of one folder of releases, and removes them unless it only lists them.

    Temporary folders, and work folders on a disk, are those of the host that runs the task. Returns the content of
    `Findings.summary`.

    :param bucket: the bucket of the releases; likewise `prefix`, the folder in it.
    :param dag_bucket: the bucket that the DAG file names, which is allowed besides those of the deployment. None:
        `bucket`, unless it is a template.
    :param list_only: True to remove nothing.
    :param grace_h: the age in hours from which something is a leftover.
    :param mlflow_conn_id: an Airflow connection of type `mlflow`. Its account must be able to read every model.
    :param s3_conn_id: an Airflow connection of type `s3store` or `aws`.
    """

    template_fields: Sequence[str] = ("bucket", "prefix", "list_only", "grace_h", "mlflow_conn_id", "s3_conn_id")
    ui_color = "#f1f5f9"

    def __init__(
        self,
        *,
        bucket: str,
        dag_bucket: str | None = None,
        prefix: str = "",
        list_only: Any = True,
        grace_h: Any = defaults.GRACE_H,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        s3_conn_id: str = defaults.S3_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.bucket = bucket
        self.dag_bucket = buckets.in_dag_file(bucket) if dag_bucket is None else dag_bucket
        self.prefix = prefix
        self.list_only = list_only
        self.grace_h = grace_h
        self.mlflow_conn_id = mlflow_conn_id
        self.s3_conn_id = s3_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Search, remove, log the table and return the findings."""
        with airflow_outcome():
            buckets.require_allowed(self.bucket, self.dag_bucket)
            found = collect(
                bucket=self.bucket,
                prefix=self.prefix,
                mlflow_conn_id=self.mlflow_conn_id,
                s3_conn_id=self.s3_conn_id,
                grace_h=params.value(self.grace_h),
                dry_run=params.value(self.list_only),
                dag_state=dag_runs.state,
            )
        for line in table.lines(found):
            self.log.info("%s", line)
        return found.summary()
