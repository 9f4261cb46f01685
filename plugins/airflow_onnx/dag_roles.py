"""Roles of the DAGs of this package, as tags. The pages find a DAG by its role: its id is free."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.sdk import Context


class DagRole(StrEnum):
    """Tag of each DAG that one of the factories makes. `RELEASE_TASKS` is a DAG with a task group of a release."""

    RELEASE = "onnx-release:release"
    RELEASE_TASKS = "onnx-release:release-tasks"
    WATCH = "onnx-release:watch"
    MOVE_ALIAS = "onnx-release:move-alias"
    COLLECT_LEFTOVERS = "onnx-release:collect-leftovers"
    REHEARSE_RUNTIME = "onnx-release:rehearse-runtime"
    VERIFY_RELEASES = "onnx-release:verify-releases"
    RETIRE_VERSIONS = "onnx-release:retire-versions"


RELEASING = (DagRole.RELEASE, DagRole.RELEASE_TASKS)


def dag_ids(*roles: DagRole) -> list[str]:
    """Return the ids of the DAGs with one of the roles, from Airflow's database. For its servers and commands only."""
    from airflow.models.dag import DagModel, DagTag
    from airflow.utils.session import create_session
    from sqlalchemy import select

    query = select(DagTag.dag_id).join(DagModel, DagModel.dag_id == DagTag.dag_id)
    with create_session() as session:
        return sorted(session.scalars(query.where(DagTag.name.in_(roles), DagModel.is_stale.is_(False)).distinct()))


def takes_parameters(context: Context) -> bool:
    """Return True if the DAG of a task has the parameters of a release, False for a DAG with a task group of one."""
    dag = context.get("dag")
    return dag is None or DagRole.RELEASE_TASKS not in dag.tags
