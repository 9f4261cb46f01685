"""A task of another queue. Its first try fails; the second returns the queue of its task instance."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator

from airflow_onnx.deployment import placement

PLACES = placement.places({"export": {"queue": "exporting"}})


class FailsOnceOperator(BaseOperator):
    """Operator that fails in its first try."""

    def execute(self, context: Any) -> str:
        """Return the queue."""
        if context["ti"].try_number == 1:
            raise RuntimeError("once")
        return str(context["ti"].queue)


class PlainOperator(BaseOperator):
    """Operator without a failure."""

    def execute(self, context: Any) -> str:
        """Return the queue."""
        return str(context["ti"].queue)


retries = {"retries": 1, "retry_delay": timedelta(seconds=1)}
with DAG("placed", schedule=None, default_args={**retries, **placement.arguments("light", PLACES)}):
    PlainOperator(task_id="before") >> FailsOnceOperator(task_id="export", **placement.arguments("export", PLACES))
