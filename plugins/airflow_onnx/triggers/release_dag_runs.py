"""Waits in the triggerer while releases go on, so that a backfill of a thousand runs holds no worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_onnx import dag_runs
from onnx_release.errors import Refused, Transient


class ReleaseDagRunsTrigger(BaseTrigger):
    """Fires when enough of the DAG runs have ended, or at the latest after `wait_max_s`.

    :param dag_run_ids: releases that go on.
    :param ended_min: how many of them must have ended.
    :param poll_interval_s: seconds between two looks.
    """

    def __init__(
        self, *, dag_run_ids: list[str], ended_min: int, wait_max_s: float, poll_interval_s: float = 2.0
    ) -> None:
        super().__init__()
        self.dag_run_ids = dag_run_ids
        self.ended_min = ended_min
        self.wait_max_s = wait_max_s
        self.poll_interval_s = poll_interval_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "dag_run_ids": self.dag_run_ids,
                "ended_min": self.ended_min,
                "wait_max_s": self.wait_max_s,
                "poll_interval_s": self.poll_interval_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until it is time to fire, then fire once; the task looks at each DAG run anew."""
        waited_s = 0.0
        while waited_s < self.wait_max_s and await self._going_on() > len(self.dag_run_ids) - self.ended_min:
            await asyncio.sleep(self.poll_interval_s)
            waited_s += self.poll_interval_s
        yield TriggerEvent({"waited_s": waited_s})

    async def _going_on(self) -> int:
        if not self.dag_run_ids:
            return 1  # nothing of its own to wait for: only the time counts
        try:
            return int(await sync_to_async(dag_runs.count)(self.dag_run_ids, dag_runs.ALIVE))
        except (Refused, Transient) as error:
            self.log.warning("Cannot see the releases, and looks again: %s", error)
            return len(self.dag_run_ids)
