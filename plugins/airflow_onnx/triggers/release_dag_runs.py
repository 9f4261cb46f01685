"""Trigger that waits for releases in progress, so that a backfill of a thousand runs occupies no worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_onnx.dag_runs import ACTIVE_STATES, count
from onnx_release.errors import Refused, Transient


class ReleaseDagRunsTrigger(BaseTrigger):
    """Trigger that fires when enough of the DAG runs have ended, or after `wait_max_s`.

    :param dag_runs: the ids of releases in progress by the id of their DAG. Without any the trigger only waits.
    :param ended_min: the number of them that must have ended.
    :param wait_max_s: the longest time to wait, in seconds.
    :param poll_interval_s: seconds between two polls.
    """

    def __init__(
        self, *, dag_runs: dict[str, list[str]], ended_min: int, wait_max_s: float, poll_interval_s: float = 2.0
    ) -> None:
        super().__init__()
        self.dag_runs = dag_runs
        self.ended_min = ended_min
        self.wait_max_s = wait_max_s
        self.poll_interval_s = poll_interval_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "dag_runs": self.dag_runs,
                "ended_min": self.ended_min,
                "wait_max_s": self.wait_max_s,
                "poll_interval_s": self.poll_interval_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the condition is met, then fire once. The task itself then reads the state of each DAG run."""
        waited_s = 0.0
        while waited_s < self.wait_max_s and not await self._enough_ended():
            await asyncio.sleep(self.poll_interval_s)
            waited_s += self.poll_interval_s
        yield TriggerEvent({"waited_s": waited_s})

    async def _enough_ended(self) -> bool:
        if not self.dag_runs:
            return False
        try:
            active = [
                await sync_to_async(count)(dag_id, run_ids, ACTIVE_STATES) for dag_id, run_ids in self.dag_runs.items()
            ]
        except (Refused, Transient) as error:
            self.log.warning("The state of the releases cannot be read, and the trigger tries again: %s", error)
            return False
        return sum(map(len, self.dag_runs.values())) - sum(active) >= self.ended_min
