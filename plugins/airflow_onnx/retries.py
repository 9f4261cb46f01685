"""Retries of tasks: number, delay and time limit, from the options of the deployment.

A failure that may heal is repeated after a delay that doubles with each try, with jitter. Airflow's own jitter depends
on the logical date, which the DAG runs of releases do not have: after an outage all of them would return in the same
second. A refusal is never repeated: see `task_outcome`.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow import sdk

from airflow_onnx.deployment import settings

if TYPE_CHECKING:
    from airflow.sdk import Context, RetryDecision, RetryPolicy
else:
    # Airflow 3.2 has none. Its tasks have Airflow's own jitter.
    RetryPolicy = getattr(sdk, "RetryPolicy", object)

_FACTOR = 2.0
_JITTER = 0.5


def arguments() -> dict[str, Any]:
    """Return the arguments of a task that Airflow repeats after a failure of a server or of the worker.

    :raises DeploymentRefused: for an option that is not a number above 0.
    """
    first_s, longest_s = settings.retry_delay_s(), settings.retry_max_delay_s()
    found: dict[str, Any] = {
        "retries": settings.retries(),
        # Airflow uses these for a task whose process was killed.
        "retry_delay": timedelta(seconds=first_s),
        "retry_exponential_backoff": _FACTOR,
        "max_retry_delay": timedelta(seconds=longest_s),
        "execution_timeout": timedelta(seconds=settings.task_timeout_s()),
    }
    if hasattr(sdk, "RetryPolicy"):
        found["retry_policy"] = Backoff(first_s, longest_s)
    return found


def many() -> dict[str, Any]:
    """Return the arguments of a task that must outlast an outage: the teardown, which records the end of a release."""
    return {"retries": settings.end_retries()}


def tries(ti: Any) -> int:
    """Return the number of a task's present try, counted from its last clear."""
    return int(ti.try_number - (ti.max_tries - ti.task.retries))


class Backoff(RetryPolicy):
    """Exponential delay with jitter. It runs in the process of the task.

    :param first_s: the delay after the first try in seconds, before the jitter.
    :param longest_s: the longest delay.
    """

    def __init__(self, first_s: float, longest_s: float) -> None:
        self.first_s = first_s
        self.longest_s = longest_s

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Return the delay of the next try, with a line for the log."""
        from airflow.sdk import RetryDecision

        ti: Any = context["ti"] if context else None
        number, total = (tries(ti), ti.task.retries + 1) if ti else (try_number, max_tries + 1)
        delay_s = self.delay_s(number)
        if number >= total:
            return RetryDecision.default()
        reason = f"{type(exception).__name__} may heal. Try {number + 1} of {total} follows in {delay_s:.0f} s"
        return RetryDecision.retry(timedelta(seconds=delay_s), reason)

    def delay_s(self, number: int) -> float:
        """Return the delay after a try: from half of the exponential delay up to all of it."""
        # 64 doublings are longer than any limit, and more would overflow.
        exponential_s = min(self.longest_s, self.first_s * _FACTOR ** min(number - 1, 64))
        return exponential_s * random.uniform(1.0 - _JITTER, 1.0)  # noqa: S311 - not a secret

    def serialize(self) -> dict[str, Any]:
        """Return the arguments."""
        return {"first_s": self.first_s, "longest_s": self.longest_s}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> Backoff:
        """Return the policy of these arguments."""
        return cls(**data)
