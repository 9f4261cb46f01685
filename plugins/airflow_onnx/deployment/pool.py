"""Creation of the measuring pool. A task whose pool is missing stays ``scheduled`` for ever, without an error."""

from __future__ import annotations

import logging

from airflow.listeners import hookimpl

from airflow_onnx import defaults
from airflow_onnx.deployment import placement
from airflow_onnx.errors import DeploymentRefused

log = logging.getLogger(__name__)

_DESCRIPTION = "Latency is measured alone: one slot for each measuring host."


@hookimpl
def on_starting(component: object) -> None:
    """Create the pool when a component of Airflow with the database starts: scheduler, triggerer, DAG processor."""
    # A task's process calls this too. It has no access to the database.
    if type(component).__name__ == "Job":
        create_missing_pool()


def create_missing_pool() -> None:
    """Create the pool of the measuring tasks with one slot. An existing pool stays unchanged."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import IntegrityError

    try:
        place = placement.places().get(placement.MEASURE)
    except DeploymentRefused:
        return  # The import error of the DAG has the reason.
    name = (place and place.pool) or defaults.MEASURE_POOL
    try:
        with create_session() as session:
            if session.scalar(select(Pool.id).where(Pool.pool == name)) is not None:
                return
            session.add(Pool(pool=name, slots=1, description=_DESCRIPTION, include_deferred=False))
    except IntegrityError:
        return  # Another component has created it at the same time.
    log.info("Created the pool '%s' with one slot.", name)
