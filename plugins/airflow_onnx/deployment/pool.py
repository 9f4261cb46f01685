"""Creation of the pools of the tasks. A task whose pool is missing stays ``scheduled`` for ever, without an error.

LocalExecutor runs queued tasks first come, first served, so a priority alone does not help a task behind long ones. The
pools bound the tasks that take long: a slot of the executor is left for the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from airflow.listeners import hookimpl

from airflow_onnx import defaults
from airflow_onnx.deployment import placement, settings
from airflow_onnx.errors import DeploymentRefused

log = logging.getLogger(__name__)

# By kind of task: the slots of its pool and a description for people.
_POOLS: dict[str, tuple[Callable[[], int], str]] = {
    placement.MEASURE: (
        settings.measure_slots,
        "Comparisons and measurements of latency. One task is timed on a host.",
    ),
    placement.EXPORT: (settings.export_slots, "Exports, which take long: a bound leaves slots for other tasks."),
    placement.WATCH: (lambda: defaults.WATCH_SLOTS, "Decisions of the watch, which start before other tasks."),
}


@hookimpl
def on_starting(component: object) -> None:
    """Create the pools when a component of Airflow with the database starts: scheduler, triggerer, DAG processor."""
    # A task's process calls this too. It has no access to the database.
    if type(component).__name__ == "Job":
        create_missing_pools()


def create_missing_pools() -> None:
    """Create the pool of each kind of task. An existing pool stays unchanged."""
    for kind, (slots, description) in _POOLS.items():
        try:
            name, count = placement.pool(kind), slots()
        except DeploymentRefused as error:
            # A wrong placement is also the import error of the DAG.
            log.error("The pool of the tasks '%s' is not created: %s", kind, error)  # noqa: TRY400 - it has no traceback
        else:
            _create(name, count, description)


def _create(name: str, slots: int, description: str) -> None:
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import IntegrityError

    try:
        with create_session() as session:
            if session.scalar(select(Pool.id).where(Pool.pool == name)) is not None:
                return
            session.add(Pool(pool=name, slots=slots, description=description, include_deferred=False))
    except IntegrityError:
        return  # Another component has created it at the same time.
    log.info("Created the pool '%s' with %d slots.", name, slots)
