"""Factory of the DAG that retires old versions: it deletes them and their objects."""

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
from airflow_onnx.deployment import placement
from airflow_onnx.leftovers_dag import folder_params
from airflow_onnx.operators.retire_versions import RetireVersionsOperator
from airflow_onnx.params import EXPERTS, RUN, field, json_param, json_params, text_params, with_defaults

_TEXT = """Retirement of old versions: deletion of the version and of its objects.

A version goes only if no alias has it, if it is old enough, and if it is neither one of the newest of its model nor
needed for a roll back. By default it only lists them: set *dry run* to false to delete them. The alias log and the
reports stay.
"""


def retire_versions_dag(
    dag_id: str,
    *,
    schedule: Any = None,
    dag_display_name: str = "",
    tags: Sequence[str] = TAGS,
    default_args: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> DAG:
    """Make the DAG that finds the versions to retire in one folder of releases, and deletes them on request.

    :param dag_id: the id of the DAG.
    :param schedule: a schedule of Airflow, such as ``@monthly``. Its DAG runs delete something only with
        ``dry_run=False``.
    :param dag_display_name: the name in Airflow's UI. Empty: the id.
    :param tags: tags for Airflow's list of DAGs.
    :param default_args: arguments of its task, for example ``{"queue": "light"}``.
    :param parameters: defaults of the parameters: `bucket`, `prefix`, `dry_run`, `models`, `min_age_days`,
        `made_before`, `keep_newest`, `keep_previous`, `reason`, `mlflow_conn_id` and `s3_conn_id`.
    :raises Refused: for a wrong argument. Airflow shows it as the import error of the DAG file.
    """
    form = with_defaults(_params(), parameters)
    with new_dag(
        dag_id, DagRole.RETIRE_VERSIONS, _TEXT,
        dag_display_name=dag_display_name,
        params=form,
        tags=tags,
        schedule=schedule,
        is_paused_upon_creation=None if schedule else False,
        max_active_runs=1,
        default_args={**placement.arguments("light"), **(default_args or {})},
    ) as dag:  # fmt: skip
        RetireVersionsOperator(
            task_id="retire",
            list_only=json_param("dry_run"),
            dag_bucket=form["bucket"].value or "",
            rules=json_params("models", "min_age_days", "made_before", "keep_newest", "keep_previous"),
            **text_params("bucket", "prefix", "reason", "mlflow_conn_id", "s3_conn_id"),
        )
    return dag


def _params() -> dict[str, Param]:
    return {
        "dry_run": field(True, "boolean", RUN, "Dry run", "List the versions and delete nothing."),
        "models": field(
            None, "array", RUN, "Models",
            "Names or patterns such as radio-*, one a line. Empty: all models.",
            may_be_empty=True, items={"type": "string", "minLength": 1},
        ),
        "min_age_days": field(
            defaults.RETIRE_AGE_DAYS, "number", RUN, "Age (days)",
            "A version goes if it was made, and left by its last alias, at least this long ago.",
            minimum=defaults.RETIRE_AGE_MIN_DAYS, maximum=defaults.RETIRE_AGE_MAX_DAYS,
        ),
        "made_before": field(
            None, "string", RUN, "Made before", "A version goes only if it was made before this time. Empty: no limit.",
            format="date-time",
        ),
        "keep_newest": field(
            defaults.RETIRE_KEEP_NEWEST, "integer", RUN, "Keep the newest", "Versions of each model that stay.",
            minimum=0, maximum=defaults.RETIRE_KEEP_MAX,
        ),
        "reason": field(
            None, "string", RUN, "Reason", "One sentence for the record on the training runs. Empty: the rules.",
            maxLength=500,
        ),
        "keep_previous": field(
            defaults.RETIRE_KEEP_PREVIOUS, "integer", EXPERTS, "Keep for a roll back",
            "Versions of each alias that stay: those that it was at before.",
            minimum=0, maximum=defaults.RETIRE_KEEP_MAX,
        ),
        **folder_params("Versions with objects outside of this folder stay. Empty: the root of the bucket.", EXPERTS),
    }  # fmt: skip
