"""Factory of the DAG that moves an alias to a version that a person chooses, for example back to an earlier one."""

from __future__ import annotations

from pathlib import Path

from airflow_onnx import installation

installation.check(Path(__file__).parent)

from collections.abc import Sequence

from airflow.sdk import DAG, Param, TriggerRule

from airflow_onnx import defaults, retries
from airflow_onnx.dag import TAGS, new_dag
from airflow_onnx.dag_roles import DagRole
from airflow_onnx.deployment import placement
from airflow_onnx.events.model_assets import RELEASED_VERSIONS
from airflow_onnx.operators.move_alias import ApproveMoveOperator, MoveAliasOperator, VerifyVersionOperator
from airflow_onnx.params import field, json_param, json_params, task_record, text_params
from onnx_release.training_runs.names import MODEL_NAME

_TEXT = """Move of an alias to another version of the same registered model, for example a roll back.

The files of the version are downloaded, hashed and run first. The alias moves only if it is still at the expected
version. The move is kept in the alias log of the model.
"""
# The form opens only the section with this name: see `release_params`.
_MOVE, _CONNECTIONS = "Run Parameters", "Experts"


def move_alias_dag(
    dag_id: str,
    *,
    dag_display_name: str = "",
    tags: Sequence[str] = TAGS,
) -> DAG:
    """Make the DAG that verifies a version, waits for an approval if the alias is protected, and moves the alias.

    :param dag_id: the id of the DAG.
    :param dag_display_name: the name in Airflow's UI. Empty: the id.
    :param tags: tags for Airflow's list of DAGs.
    """
    with new_dag(
        dag_id, DagRole.MOVE_ALIAS, _TEXT,
        dag_display_name=dag_display_name,
        params=_move_params(),
        tags=tags,
        schedule=None,
        is_paused_upon_creation=False,
        default_args=placement.arguments("light"),
    ) as dag:  # fmt: skip
        step = text_params("mlflow_conn_id", "s3_conn_id", "contract_change")
        verify = VerifyVersionOperator(
            task_id="verify",
            **text_params("model_name", "alias", "reason"),
            **json_params("version", "expected_version"),
            **step,
        )
        approve = ApproveMoveOperator(
            task_id="approve",
            task_display_name="approve (protected alias)",
            verified=task_record("verify"),
            timeout_h=json_param("approval_timeout_h"),
            **retries.many(),
            **step,
        )
        move = MoveAliasOperator(
            task_id="move",
            verified=task_record("verify"),
            given=task_record("approve"),
            outlets=[RELEASED_VERSIONS],
            # The approval is skipped for an alias that is not protected.
            trigger_rule=TriggerRule.NONE_FAILED,
            **step,
        )
        verify >> approve >> move
    return dag


def _move_params() -> dict[str, Param]:
    return {
        "model_name": field(None, "string", _MOVE, "Registered model", "The name in MLflow's registry.",
            pattern=MODEL_NAME),
        "alias": field(None, "string", _MOVE, "Alias", "The alias to move, for example champion.",
            pattern=defaults.ALIAS_NAME),
        "version": field(None, "integer", _MOVE, "Version", "The version that gets the alias.", minimum=1),
        "expected_version": field(
            None, "integer", _MOVE, "Expected current version",
            "The version that has the alias now. If it is another one, nothing moves. Empty: no version has it.",
            minimum=1,
        ),
        "reason": field(
            None, "string", _MOVE, "Reason", "One sentence. It is kept in the alias log of the model.", maxLength=500
        ),
        "contract_change": field(
            "refuse", "string", _CONNECTIONS, "If inputs or outputs differ",
            "The current version has other names, dtypes or fixed dimensions: refuse the move, or allow it.",
            enum=["refuse", "allow"],
        ),
        "approval_timeout_h": field(
            defaults.APPROVAL_TIMEOUT_H, "number", _CONNECTIONS, "Wait for an approval (hours)",
            "For a protected alias. Without an answer nothing moves.",
            exclusiveMinimum=0, maximum=24 * 366,
        ),
        "mlflow_conn_id": field(
            "mlflow_default", "string", _CONNECTIONS, "MLflow connection", "Of type mlflow.", minLength=1
        ),
        "s3_conn_id": field(
            "minio_default", "string", _CONNECTIONS, "Object store connection", "Of type aws.", minLength=1
        ),
    }  # fmt: skip
