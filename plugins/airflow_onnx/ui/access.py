"""Rights to the pages: a user sees the releases of the DAGs whose DAG runs they may read in Airflow."""

from __future__ import annotations

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import HTTPException, Request

from airflow_onnx.dag_roles import RELEASING, DagRole, dag_ids


def may_read(request: Request, user: GetUserDep) -> None:
    """Let a user pass who may read a release DAG, and note the release DAGs that the user may not read.

    :raises HTTPException: 403 if the user may read none of them.
    """
    known = dag_ids(*RELEASING)
    request.state.hidden_dags = {dag_id for dag_id in known if not _is_readable(request, user, dag_id)}
    request.state.release_dags = set(known) - request.state.hidden_dags
    if known and not request.state.release_dags:
        raise HTTPException(403, "Forbidden")


def may_read_moves(request: Request, user: GetUserDep) -> None:
    """Note the DAGs that move aliases and that the user may read. No request is refused."""
    request.state.move_dags = {one for one in dag_ids(DagRole.MOVE_ALIAS) if _is_readable(request, user, one)}


def _is_readable(request: Request, user: GetUserDep, dag_id: str) -> bool:
    try:
        requires_access_dag("GET", DagAccessEntity.RUN, dag_id)(request, user)
    except HTTPException:
        return False
    return True
