"""Differences between the supported versions of Airflow. Other modules use the names of the newest version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from airflow.sdk import Param
from airflow.sdk import exceptions as airflow_exceptions
from airflow.sdk.observability import stats

# States of a task that waits for the answer of a person: that of Airflow 3.3, and that of 3.2.
WAITING_FOR_ANSWER = ("awaiting_input", "deferred")


def awaiting_input(
    ti_id: UUID, kwargs: dict[str, Any], options: Sequence[str], params: Mapping[str, Param], timeout: timedelta
) -> BaseException:
    """Return the exception that ends a task until a person answers, and resumes it in `execute_complete`.

    Airflow 3.3 has a state for it. Before, a trigger of the standard provider reads the answer every five seconds.

    :param ti_id: the task instance whose question is shown.
    :param kwargs: arguments of `execute_complete` besides the event.
    """
    if hasattr(airflow_exceptions, "TaskAwaitingInput"):
        return airflow_exceptions.TaskAwaitingInput(method_name="execute_complete", kwargs=kwargs, timeout=timeout)
    return deferred_input(ti_id, kwargs, options, params, timeout)


def deferred_input(
    ti_id: UUID, kwargs: dict[str, Any], options: Sequence[str], params: Mapping[str, Param], timeout: timedelta
) -> BaseException:
    """Return the exception of Airflow 3.2 for a task that waits for an answer."""
    from airflow.providers.standard.triggers.hitl import HITLTrigger

    trigger = HITLTrigger(
        ti_id=ti_id,
        options=list(options),
        params={name: param.serialize() for name, param in params.items()},
        timeout_datetime=datetime.now(UTC) + timeout,
    )
    return airflow_exceptions.TaskDeferred(trigger=trigger, method_name="execute_complete", kwargs=kwargs)


def asset_state_store(trigger: Any) -> Any:
    """Return the store that outlives the triggerer; None before Airflow 3.3."""
    return getattr(trigger, "asset_state_store", None)


def metrics() -> Any:
    """Return the object with `incr`, `gauge` and `timing`: a module since Airflow 3.3, a class before."""
    return stats if hasattr(stats, "incr") else stats.Stats
