"""Polls of MLflow for finished training runs that were not handled yet."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from airflow_onnx.hooks.mlflow_rest import AsyncMlflowRest
from onnx_release.training_runs.queries import Scope

WATERMARK = "watermark_ms"
# A run may be reported late, or by a clock that is behind: a poll starts this long before the watermark.
# The schedule finds runs that are even later.
LATE_MS = 10 * 60 * 1000
WATERMARK_EVERY_MS = 60 * 1000
EXPERIMENTS_EVERY_MS = 10 * 1000
RUNS_MAX = 200
HOUR_MS = 3_600_000


class StateStore(Protocol):
    """The two methods of Airflow's asset state store that a poller needs. The store outlives the triggerer."""

    async def aget(self, key: str, default: Any = None) -> Any:
        """Return the stored value, or the default."""

    async def aset(self, key: str, value: Any) -> None:
        """Store a JSON value."""


@dataclass(slots=True)
class RunPoller:
    """Polls for new finished runs, each of which it returns once.

    A run is handled when `start_releases` has set its tag ``onnx_release.watched``. If a poll finds no unhandled run,
    all runs up to that time are handled: this time is the watermark. The next polls search from the watermark only.
    The watermark is stored, and a triggerer that was down for hours searches these hours.

    :param lookback_h: the longest time that a poll searches, in hours.
    :param store: the place of the watermark, None to keep it in memory only.
    :param clock: returns the time in seconds since 1970.
    """

    scope: Scope
    lookback_h: float
    store: StateStore | None
    clock: Callable[[], float] = time.time
    _returned: set[str] = field(default_factory=set)
    _watermark_ms: int | None = None
    _stored_ms: int = 0
    _experiment_ids: list[str] = field(default_factory=list)
    _experiments_ms: int = 0

    async def new_runs(self, rest: AsyncMlflowRest) -> set[str]:
        """Return the ids of unhandled runs that the poll before did not find, out of the first `RUNS_MAX`."""
        now_ms = int(self.clock() * 1000)
        if self._watermark_ms is None:
            stored = await self.store.aget(WATERMARK, 0) if self.store is not None else 0
            # A clock that was ahead for a while must not hide later runs.
            self._watermark_ms = min(stored, now_ms) if isinstance(stored, int) else 0
        since_ms = max(self._watermark_ms - LATE_MS, now_ms - int(self.lookback_h * HOUR_MS))
        await self._update_experiments(rest, now_ms)
        query = self.scope.new_runs(self._experiment_ids, since_ms, page_size=RUNS_MAX)
        found = {run.run_id for run in await rest.first_page(query)}
        new = found - self._returned
        self._returned = found
        if not found:
            await self._advance(now_ms)
        return new

    async def _update_experiments(self, rest: AsyncMlflowRest, now_ms: int) -> None:
        # An experiment may be created at any time.
        if not self._experiment_ids or now_ms - self._experiments_ms >= EXPERIMENTS_EVERY_MS:
            self._experiment_ids = list(self.scope.released(await rest.experiments()))
            self._experiments_ms = now_ms

    async def _advance(self, now_ms: int) -> None:
        self._watermark_ms = now_ms
        if self.store is not None and now_ms - self._stored_ms >= WATERMARK_EVERY_MS:
            await self.store.aset(WATERMARK, now_ms)
            self._stored_ms = now_ms
