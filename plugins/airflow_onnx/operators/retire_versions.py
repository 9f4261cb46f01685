"""Operator of the retirement: deletion of old versions and their objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_onnx import dag_runs, defaults, params
from airflow_onnx.deployment import buckets
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.retirement import table
from airflow_onnx.retirement.records import RetirementRules
from airflow_onnx.retirement.retire import Reason, retire
from airflow_onnx.task_outcome import airflow_outcome
from airflow_onnx.tracking import alias_log, promotion_lock

if TYPE_CHECKING:
    from airflow.sdk import Context


class RetireVersionsOperator(BaseOperator):
    """Finds the versions of one folder of releases that the rules retire, and deletes them unless it only lists them.

    Returns the content of `Retirement.summary`.

    :param bucket: the bucket of the releases; likewise `prefix`, the folder in it.
    :param dag_bucket: the bucket that the DAG file names, which is allowed besides those of the deployment. None:
        `bucket`, unless it is a template.
    :param list_only: True to delete nothing.
    :param rules: fields of `RetirementRules`.
    :param reason: one sentence for the record. Empty: the rules.
    :param mlflow_conn_id: an Airflow connection of type `mlflow`. Its account must be able to read every model.
    :param s3_conn_id: an Airflow connection of type `s3store` or `aws`.
    """

    template_fields: Sequence[str] = (
        "bucket",
        "prefix",
        "list_only",
        "rules",
        "reason",
        "mlflow_conn_id",
        "s3_conn_id",
    )
    ui_color = "#f1f5f9"

    def __init__(
        self,
        *,
        bucket: str,
        dag_bucket: str | None = None,
        prefix: str = "",
        list_only: Any = True,
        rules: dict[str, Any] | None = None,
        reason: str = "",
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        s3_conn_id: str = defaults.S3_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.bucket = bucket
        self.dag_bucket = buckets.in_dag_file(bucket) if dag_bucket is None else dag_bucket
        self.prefix = prefix
        self.list_only = list_only
        self.rules = rules
        self.reason = reason
        self.mlflow_conn_id = mlflow_conn_id
        self.s3_conn_id = s3_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Decide, delete, log the table and return the decisions."""
        with airflow_outcome():
            buckets.require_allowed(self.bucket, self.dag_bucket)
            found = retire(
                bucket=self.bucket,
                prefix=self.prefix,
                mlflow_conn_id=self.mlflow_conn_id,
                s3_conn_id=self.s3_conn_id,
                rules=params.settings(RetirementRules, self.rules or {}),
                reason=Reason(
                    by=alias_log.user_of(context),
                    why=self.reason.strip(),
                    dag_run=context["dag_run"].run_id,
                    holder=promotion_lock.holder(context, self.task_id),
                ),
                dry_run=params.value(self.list_only),
                dag_state=dag_runs.state,
            )
        for line in table.lines(found):
            self.log.info("%s", line)
        return found.summary()
