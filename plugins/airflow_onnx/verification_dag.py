"""Factory of the DAG that verifies released versions again."""

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
from airflow_onnx.events.model_assets import RELEASED_VERSIONS
from airflow_onnx.events.notifications import Notifier
from airflow_onnx.events.verification_events import VERIFIED_VERSIONS, VerificationCallback
from airflow_onnx.operators.roll_back_failed import RollBackFailedVersionsOperator
from airflow_onnx.operators.summarize_verification import SummarizeVerificationOperator
from airflow_onnx.operators.verify_releases import ListReleasedVersionsOperator, VerifyReleasedVersionsOperator
from airflow_onnx.params import EXPERTS, RUN, field, json_param, json_params, text_param, text_params, with_defaults
from onnx_release.training_runs.names import MODEL_NAME

_TEXT = """Verification of released versions: bytes, checks, and outputs on this ONNX Runtime.

The files of each version are downloaded, compared with its sha256, checked, loaded, and run on the stored inputs. The
results are tags of the version, and the pages of releases show them. The DAG run fails if a version does not pass.

No alias moves unless *if a version fails* is roll_back. A protected alias never moves without an approval.
"""


def verify_releases_dag(
    dag_id: str,
    *,
    schedule: Any = None,
    at_once: int = 2,
    on_change: Notifier | Sequence[Notifier] | None = None,
    dag_display_name: str = "",
    tags: Sequence[str] = TAGS,
    default_args: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> DAG:
    """Make the DAG that verifies released versions again.

    :param dag_id: the id of the DAG.
    :param schedule: a schedule of Airflow, such as ``@weekly``.
    :param at_once: the tasks that verify at the same time. Each verifies its versions one after the other.
    :param on_change: called after a DAG run that changed a verdict, with the `VerificationEnd` as ``verification``.
    :param dag_display_name: the name in Airflow's UI. Empty: the id.
    :param tags: tags for Airflow's list of DAGs.
    :param default_args: arguments of its tasks, for example ``{"queue": "light"}``.
    :param parameters: defaults of the parameters: `models`, `all_versions`, `latency`, `on_failure`, `buckets`,
        `mlflow_conn_id` and `s3_conn_id`.
    :raises Refused: for a wrong argument. Airflow shows it as the import error of the DAG file.
    """
    with new_dag(
        dag_id, DagRole.VERIFY_RELEASES, _TEXT,
        dag_display_name=dag_display_name,
        params=with_defaults(_params(), parameters),
        tags=tags,
        schedule=schedule,
        is_paused_upon_creation=None if schedule else False,
        max_active_runs=1,
        default_args={**placement.arguments(placement.LIGHT), **(default_args or {})},
    ) as dag:  # fmt: skip
        _add_tasks(at_once, on_change, default_args or {})
    return dag


def _add_tasks(at_once: int, on_change: Notifier | Sequence[Notifier] | None, default_args: Mapping[str, Any]) -> None:
    """Add the tasks to the DAG of the context."""
    # These load models.
    loading = {**placement.arguments(placement.EXPORT), **default_args}
    connections = text_params("mlflow_conn_id", "s3_conn_id")
    versions = ListReleasedVersionsOperator(
        task_id="list",
        mlflow_conn_id=text_param("mlflow_conn_id"),
        **json_params("models", "all_versions"),
    )
    verify = VerifyReleasedVersionsOperator.partial(
        task_id="verify",
        max_active_tis_per_dag=at_once,
        outlets=[VERIFIED_VERSIONS],
        **json_params("buckets", "latency"),
        **connections,
        **loading,
    ).expand(versions=versions.output)
    roll_back = RollBackFailedVersionsOperator(
        task_id="roll_back",
        found=verify.output,
        on_failure=text_param("on_failure"),
        buckets=json_param("buckets"),
        outlets=[RELEASED_VERSIONS],
        # Results count also if another mapped task has failed.
        trigger_rule=TriggerRule.ALL_DONE,
        **connections,
        **loading,
    )
    ended = VerificationCallback(on_change)
    summarize = SummarizeVerificationOperator(
        task_id="summarize",
        listed=versions.output,
        found=verify.output,
        moves=roll_back.output,
        trigger_rule=TriggerRule.ALL_DONE,
        on_success_callback=ended,
        on_failure_callback=ended,
    )
    roll_back >> summarize


def _params() -> dict[str, Param]:
    return {
        "models": field(
            [], "array", RUN, "Models", "Registered models, one a line. Empty: all.",
            may_be_empty=True, items={"type": "string", "pattern": MODEL_NAME.regexp},
        ),
        "all_versions": field(
            False, "boolean", RUN, "All versions", "Verify versions without an alias too.",
        ),
        "on_failure": field(
            "nothing", "string", RUN, "If a version fails",
            "roll_back moves each of its aliases to the version before, if that one passes. Protected aliases stay.",
            enum=["nothing", "roll_back"],
        ),
        "latency": field(
            False, "boolean", RUN, "Measure the latency", "Report it beside the recorded one. It decides nothing.",
        ),
        "buckets": field(
            settings.release_buckets() or None, "array", RUN, "Buckets",
            "Buckets of releases, one a line. A version with files elsewhere is not verified.",
            items={"type": "string", "pattern": defaults.BUCKET_NAME.regexp},
        ),
        "mlflow_conn_id": field(
            defaults.MLFLOW_CONN_ID, "string", EXPERTS, "MLflow connection",
            "Of type mlflow. Its account reads every model and writes tags.", minLength=1,
        ),
        "s3_conn_id": field(
            defaults.S3_CONN_ID, "string", EXPERTS, "Object store connection",
            "Of type s3store or aws. Its account only reads.", minLength=1,
        ),
    }  # fmt: skip
