"""Factory of the DAG that rehearses an upgrade of ONNX Runtime with released versions."""

from __future__ import annotations

from pathlib import Path

from airflow_onnx import installation

installation.check(Path(__file__).parent)

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import DAG, Param, TriggerRule

from airflow_onnx import defaults
from airflow_onnx.dag import TAGS, new_dag
from airflow_onnx.dag_roles import DagRole
from airflow_onnx.deployment import placement, settings
from airflow_onnx.operators.rehearse_runtime import (
    ChooseRehearsalOperator,
    RehearseVersionOperator,
    ReportRehearsalOperator,
)
from airflow_onnx.params import EXPERTS, RUN, field, json_params, task_record, text_params, with_defaults
from onnx_release import limits

_TEXT = """Rehearsal of an upgrade of ONNX Runtime, before the servers get it.

Each released version runs in each given version of ONNX Runtime, beside the present one. The report shows which models
load, which outputs change, by how much and in which node, and the latency. No model, alias or server is changed.
"""


def rehearse_runtime_dag(
    dag_id: str,
    *,
    schedule: Any = None,
    dag_display_name: str = "",
    tags: Sequence[str] = TAGS,
    default_args: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> DAG:
    """Make the DAG that runs released versions in other versions of ONNX Runtime, and reports the differences.

    :param dag_id: the id of the DAG.
    :param schedule: a schedule of Airflow. It needs a default for `runtimes`.
    :param dag_display_name: the name in Airflow's UI. Empty: the id.
    :param tags: tags for Airflow's list of DAGs.
    :param default_args: arguments of its tasks.
    :param parameters: defaults of the parameters: `runtimes`, `models`, `all_versions`, `latency`, `timeout_s`,
        `buckets`, `experiment`, `mlflow_conn_id` and `s3_conn_id`.
    :raises Refused: for a wrong argument. Airflow shows it as the import error of the DAG file.
    """
    with new_dag(
        dag_id, DagRole.REHEARSE_RUNTIME, _TEXT,
        dag_display_name=dag_display_name,
        params=with_defaults(_params(), parameters),
        tags=tags,
        schedule=schedule,
        is_paused_upon_creation=None if schedule else False,
        max_active_runs=1,
        default_args={**placement.arguments(placement.LIGHT), **(default_args or {})},
    ) as dag:  # fmt: skip
        choose = ChooseRehearsalOperator(
            task_id="choose",
            **json_params("runtimes", "models", "all_versions"),
            **text_params("mlflow_conn_id"),
        )
        # Its pool bounds the mapped tasks, and the lock of a host the measurements.
        rehearse = RehearseVersionOperator.partial(
            task_id="rehearse",
            **json_params("buckets", "latency", "timeout_s"),
            **text_params("mlflow_conn_id", "s3_conn_id"),
            **{**placement.arguments(placement.MEASURE), **(default_args or {})},
        ).expand(chosen=choose.output)
        ReportRehearsalOperator(
            task_id="report",
            chosen=task_record("choose"),
            results=rehearse.output,
            # A version whose task failed is named in the report.
            trigger_rule=TriggerRule.ALL_DONE,
            **text_params("experiment", "mlflow_conn_id"),
        )
    return dag


def _params() -> dict[str, Param]:
    return {
        "runtimes": field(
            None, "array", RUN, "Versions of ONNX Runtime",
            "One per line: exact versions such as 1.24.4, a requirement such as onnxruntime>=1.20,<1.24, or names of "
            "environments of the deployment.",
            items={"type": "string", "maxLength": 200}, maxItems=limits.TARGET_RUNTIMES_MAX,
        ),
        "models": field(
            [], "array", RUN, "Registered models", "One name per line. Empty: all models.",
            may_be_empty=True, items={"type": "string", "maxLength": 256}, maxItems=1000,
        ),
        "all_versions": field(
            False, "boolean", RUN, "All versions", "Also versions that no alias holds."
        ),
        "latency": field(
            True, "boolean", RUN, "Measure the latency", "Beside the present version, in the same rounds: a few "
            "seconds for each model and version.",
        ),
        "buckets": field(
            settings.release_buckets() or None, "array", RUN, "Buckets",
            "Buckets of releases, one a line. A version with files elsewhere is not rehearsed.",
            items={"type": "string", "pattern": defaults.BUCKET_NAME.regexp},
        ),
        "timeout_s": field(
            defaults.REHEARSAL_TIMEOUT_S, "number", EXPERTS, "Time limit (s)",
            "The longest run of one model in one version of ONNX Runtime, without the measurement.",
            exclusiveMinimum=0, maximum=86400,
        ),
        "experiment": field(
            defaults.REHEARSAL_EXPERIMENT, "string", EXPERTS, "Experiment of the reports",
            "The experiment in MLflow that gets a run with the report. It is created if it is missing.",
            minLength=1, maxLength=250,
        ),
        "mlflow_conn_id": field(
            defaults.MLFLOW_CONN_ID, "string", EXPERTS, "MLflow connection", "Of type mlflow.", minLength=1
        ),
        "s3_conn_id": field(
            defaults.S3_CONN_ID, "string", EXPERTS, "Object store connection", "Of type s3store or aws.",
            minLength=1,
        ),
    }  # fmt: skip
