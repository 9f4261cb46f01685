"""Durations of a release's tasks, and the queue for the measuring slot.

Airflow returns the duration of each ended task to another task, and not its start: each task leaves its start in XCom.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowRuntimeError

from onnx_release.records import StepTime

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

XCOM_KEY = "began"
# These wait for their own work: the sensor for the training, an approval for a person.
WAITING_OPERATORS = ("MlflowTrainingRunSensor", "OnnxApproveVersionOperator")
# The tasks of a release that take the measuring slot.
MEASURING_TASKS = ("tune", "parity_latency")
_IN_QUEUE = ("scheduled", "queued", "running")
# A shorter wait is the time that Airflow needs to start a task.
_WAIT_MIN_S = 10.0


def leave_begin(context: Context) -> None:
    """Leave the start of this task for `step_times`."""
    ti: Any = context["ti"]
    ti.xcom_push(key=XCOM_KEY, value=ti.start_date.isoformat())


def step_times(context: Context) -> tuple[StepTime, ...]:
    """Return the durations of the ended tasks in their order, empty if Airflow does not answer.

    `wall_s` of a task begins at the end of the task before it. `waited_s` is the time until its own start, or all of it
    for a task that waits.
    """
    try:
        return tuple(_step_times(context))
    except AirflowRuntimeError:
        return ()


def log_wait(context: Context) -> None:
    """Log the time that this task has waited for the measuring slot."""
    from onnx_release.report.numbers import seconds_text

    ti: Any = context["ti"]
    ended = step_times(context)
    began = context["dag_run"].start_date
    if not ended or began is None:
        return
    waited_s = (ti.start_date - began).total_seconds() - sum(step.wall_s for step in ended)
    if waited_s >= _WAIT_MIN_S:
        log.info("Waited %s for the measuring slot.", seconds_text(waited_s))


def log_queue(context: Context) -> None:
    """Log the number of measurements before the next task, which takes the measuring slot.

    Nothing of this package runs while a task waits for a slot, so the task before it has the line.
    """
    ti: Any = context["ti"]
    dag_id = context["dag_run"].dag_id
    try:
        before = ti.get_ti_count(dag_id=dag_id, task_ids=list(MEASURING_TASKS), states=list(_IN_QUEUE))
    except AirflowRuntimeError:
        return
    if before:
        log.info("The next task waits for the measuring slot, %d before it.", before)


def _step_times(context: Context) -> Iterator[StepTime]:
    ti: Any = context["ti"]
    run = context["dag_run"]
    rows = [row for row in ti.get_task_breadcrumbs(run.dag_id, run.run_id) if row["duration"] is not None]
    begins = ti.xcom_pull(task_ids=[row["task_id"] for row in rows], key=XCOM_KEY) if rows else ()
    found = [(datetime.fromisoformat(begin), row) for begin, row in zip(begins, rows, strict=True) if begin]
    end = run.start_date
    for begin, row in sorted(found, key=lambda one: one[0]):
        before_s = max(0.0, (begin - end).total_seconds()) if end else 0.0
        wall_s = before_s + row["duration"]
        waited_s = wall_s if row["operator"] in WAITING_OPERATORS else before_s
        yield StepTime(task=row["task_id"], wall_s=round(wall_s, 3), waited_s=round(waited_s, 3))
        end = datetime.fromtimestamp(begin.timestamp() + row["duration"], begin.tzinfo)
