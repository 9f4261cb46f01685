"""States of DAG runs for a command line, which has no supervisor. It may read Airflow's database."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_onnx import dag_runs
from airflow_onnx.dag_runs import State


def state(dag_id: str, dag_run_id: str) -> State:
    """Return the state of one DAG run."""
    found = states(dag_id, [dag_run_id]).get(dag_run_id)
    if found is None:
        return State.ABSENT
    return State.ACTIVE if found in dag_runs.ACTIVE_STATES else State(found)


def absent(dag_id: str, dag_run_ids: Sequence[str]) -> set[str]:
    """Return the ids without a DAG run."""
    return set(dag_run_ids) - set(states(dag_id, dag_run_ids))


def states(dag_id: str, dag_run_ids: Sequence[str]) -> dict[str, str]:
    """Return Airflow's states of the DAG runs that exist, by id."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    query = select(DagRun.run_id, DagRun.state).where(DagRun.dag_id == dag_id, DagRun.run_id.in_(dag_run_ids))
    with create_session() as session:
        return {run_id: str(found) for run_id, found in session.execute(query)}
