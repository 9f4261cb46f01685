"""Durations of a release's tasks, and the queue for the measuring slot.

Airflow returns the duration of each ended task to another task, and not its start: each task leaves its start in XCom,
and its wait for the measuring lock of the host.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowRuntimeError

from onnx_release.records import StepTime

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

XCOM_KEY = "step"
# These wait for their own work: the sensor for the training, an approval for a person.
WAITING_OPERATORS = ("MlflowTrainingRunSensor", "OnnxApproveVersionOperator")
# The tasks of a release that take the measuring slot.
MEASURING_TASKS = ("tune", "parity_latency")
_IN_QUEUE = ("scheduled", "queued", "running")
# A shorter wait is the time that Airflow needs to start a task.
_WAIT_MIN_S = 10.0


def leave_begin(context: Context) -> None:
    """Leave the start of this task for `step_times`."""
    leave_wait(context, 0.0)


def leave_wait(context: Context, waited_s: float) -> None:
    """Leave the start of this task, and the seconds for which it has waited since then."""
    ti: Any = context["ti"]
    ti.xcom_push(key=XCOM_KEY, value={"began": ti.start_date.isoformat(), "waited_s": waited_s})


def step_times(context: Context) -> tuple[StepTime, ...]:
    """Return the durations of the ended tasks and of this one so far, empty if Airflow does not answer.

    `wall_s` of a task begins at the end of the task before it. `waited_s` is the time until its own start and its wait
    for the lock of the host, or all of it for a task that waits.
    """
    try:
        return tuple(_step_times(context))
    except AirflowRuntimeError:
        return ()


def log_wait(context: Context) -> None:
    """Log the time that this task has waited for the measuring slot."""
    from onnx_release.report.numbers import seconds_text

    for running in step_times(context)[-1:]:
        if running.waited_s and running.waited_s >= _WAIT_MIN_S:
            log.info("Waited %s for the measuring slot.", seconds_text(running.waited_s))


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
    now = datetime.now(UTC)
    rows = [row for row in ti.get_task_breadcrumbs(run.dag_id, run.run_id) if row["duration"] is not None]
    rows = [row for row in rows if row["task_id"] != ti.task_id]
    duration = (now - ti.start_date).total_seconds()
    rows.append({"task_id": ti.task_id, "operator": ti.task.task_type, "duration": duration})
    left = ti.xcom_pull(task_ids=[row["task_id"] for row in rows], key=XCOM_KEY)
    found = [(datetime.fromisoformat(step["began"]), step, row) for step, row in zip(left, rows, strict=True) if step]
    end = run.start_date
    for began, step, row in sorted(found, key=lambda one: one[0]):
        before_s = max(0.0, (began - end).total_seconds()) if end else 0.0
        wall_s = before_s + row["duration"]
        waited_s = wall_s if row["operator"] in WAITING_OPERATORS else before_s + step["waited_s"]
        yield StepTime(task=row["task_id"], wall_s=round(wall_s, 3), waited_s=round(waited_s, 3))
        end = datetime.fromtimestamp(began.timestamp() + row["duration"], began.tzinfo)
