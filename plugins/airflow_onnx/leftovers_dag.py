"""Factory of the DAG that removes files and records that a crash left behind."""

from __future__ import annotations

from pathlib import Path

from airflow_onnx import installation

installation.check(Path(__file__).parent)

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import DAG, Param

from airflow_onnx import defaults
from airflow_onnx.dag import TAGS, new_dag
from airflow_onnx.dag_roles import DagRole
from airflow_onnx.deployment import placement, settings
from airflow_onnx.operators.collect_leftovers import CollectLeftoversOperator
from airflow_onnx.params import EXPERTS, RUN, field, json_param, json_params, text_params, with_defaults

_TEXT = """Garbage collection: removal of what a crash left behind.

These are objects that no version and no training run names, uploads in parts, work folders, temporary folders and
versions that never became ready. By default it only lists them: set *dry run* to false to remove them.
"""


def collect_leftovers_dag(
    dag_id: str,
    *,
    schedule: Any = None,
    dag_display_name: str = "",
    tags: Sequence[str] = TAGS,
    default_args: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> DAG:
    """Make the DAG that finds the leftovers of one folder of releases, and removes them on request.

    :param dag_id: the id of the DAG.
    :param schedule: a schedule of Airflow, such as ``@weekly``. Its DAG runs remove something only with
        ``dry_run=False``.
    :param dag_display_name: the name in Airflow's UI. Empty: the id.
    :param tags: tags for Airflow's list of DAGs.
    :param default_args: arguments of its task, for example ``{"queue": "light"}``.
    :param parameters: defaults of the parameters: `bucket`, `prefix`, `dry_run`, `grace_h`, `mlflow_conn_id` and
        `s3_conn_id`.
    :raises Refused: for a wrong argument. Airflow shows it as the import error of the DAG file.
    """
    form = with_defaults(_params(), parameters)
    with new_dag(
        dag_id, DagRole.COLLECT_LEFTOVERS, _TEXT,
        dag_display_name=dag_display_name,
        params=form,
        tags=tags,
        schedule=schedule,
        is_paused_upon_creation=None if schedule else False,
        max_active_runs=1,
        default_args={**placement.arguments("light"), **(default_args or {})},
    ) as dag:  # fmt: skip
        CollectLeftoversOperator(
            task_id="collect",
            list_only=json_param("dry_run"),
            dag_bucket=form["bucket"].value or "",
            **text_params("bucket", "prefix", "mlflow_conn_id", "s3_conn_id"),
            **json_params("grace_h"),
        )
    return dag


def _params() -> dict[str, Param]:
    return {
        "dry_run": field(True, "boolean", RUN, "Dry run", "List the leftovers and remove nothing."),
        "grace_h": field(
            defaults.GRACE_H, "number", RUN, "Grace period (hours)",
            "Nothing that is younger is removed, by the clock of the store.",
            minimum=defaults.GRACE_MIN_H, maximum=defaults.GRACE_MAX_H,
        ),
        **folder_params("Nothing outside of this folder is touched. Empty: the root of the bucket."),
    }  # fmt: skip


def folder_params(prefix_text: str, section: str = RUN) -> dict[str, Param]:
    """Return the parameters of a folder of releases: its place, and the connections to it.

    :param prefix_text: the text of the field with the folder.
    :param section: the section of bucket and folder.
    """
    return {
        "bucket": field(
            settings.bucket() or None, "string", section, "Bucket", "The bucket of the releases.",
            pattern=defaults.BUCKET_NAME,
        ),
        "prefix": field(
            settings.prefix() or None, "string", section, "Folder in the bucket", prefix_text,
            pattern=defaults.PREFIX, may_be_empty=True,
        ),
        "mlflow_conn_id": field(
            defaults.MLFLOW_CONN_ID, "string", EXPERTS, "MLflow connection",
            "Of type mlflow. Its account must be able to read every model.", minLength=1,
        ),
        "s3_conn_id": field(
            defaults.S3_CONN_ID, "string", EXPERTS, "Object store connection", "Of type s3store or aws.",
            minLength=1,
        ),
    }  # fmt: skip
