"""When to ring: which finished runs are new since the last poll, and how far back a poll must ask."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from airflow_onnx.hooks.mlflow import MlflowServer
from airflow_onnx.hooks.mlflow_rest import RunQuery, error_of
from airflow_onnx.watch.queries import Scope

WATERMARK = "watermark_ms"
# A run may be reported late, or by a clock that is behind: a poll goes back this far behind the watermark. What is
# later still is found by the schedule, which looks back further.
LATE_MS = 10 * 60 * 1000
WATERMARK_EVERY_MS = 60 * 1000
EXPERIMENTS_EVERY_MS = 10 * 1000
RUNS_MAX = 200


class Memory(Protocol):
    """The part of Airflow's asset state that the bell needs; it outlives the triggerer."""

    async def aget(self, key: str, default: Any = None) -> Any:
        """Return what is stored, or the default."""

    async def aset(self, key: str, value: Any) -> None:
        """Store a JSON value."""


@dataclass(slots=True)
class Bell:
    """Finds out whether to ring.

    It rings once for each run that nobody has decided about. When a poll finds no such run, all that ended before the
    poll is decided: that is the watermark. It is kept, so that a poll asks for the last minutes only, and a triggerer
    that was down for hours asks for those hours.

    :param lookback_h: the furthest that a poll goes back.
    """

    scope: Scope
    lookback_h: float
    memory: Memory | None
    _rung: set[str] = field(default_factory=set)
    _watermark_ms: int | None = None
    _stored_ms: int = 0
    _experiment_ids: tuple[int, list[str]] = (0, [])

    async def new_runs(self, client: httpx.AsyncClient, server: MlflowServer) -> set[str]:
        """Return the ids of the runs to ring for; at most `RUNS_MAX` at once, as one is enough to ring."""
        now_ms = int(time.time() * 1000)
        if self._watermark_ms is None:
            # A clock that was ahead once must not hide runs until it is that late again.
            self._watermark_ms = min(await self._remembered(), now_ms)
        since_ms = max(self._watermark_ms - LATE_MS, now_ms - int(self.lookback_h * 3_600_000))
        ids = await self._experiments(client, server, now_ms)
        found = await self._undecided(client, server, self.scope.new_runs(ids, since_ms, page_size=RUNS_MAX))
        new = found - self._rung
        self._rung = found
        if not found:
            await self._advance(now_ms)
        return new

    async def _undecided(self, client: httpx.AsyncClient, server: MlflowServer, query: RunQuery) -> set[str]:
        if not query.experiment_ids:
            return set()
        answer = await client.post("runs/search", json=query.body())
        return {run["info"]["run_id"] for run in _json(answer, server, "runs/search").get("runs") or []}

    async def _experiments(self, client: httpx.AsyncClient, server: MlflowServer, now_ms: int) -> list[str]:
        """Return the ids of the watched experiments, asked for now and then: one may be made at any time."""
        asked_ms, ids = self._experiment_ids
        if now_ms - asked_ms < EXPERIMENTS_EVERY_MS and ids:
            return ids
        found: list[dict[str, Any]] = []
        token: dict[str, str] = {}
        while True:
            answer = await client.get("experiments/search", params={"max_results": 1000, **token})
            page = _json(answer, server, "experiments/search")
            found += page.get("experiments") or []
            if not page.get("next_page_token"):
                break
            token = {"page_token": page["next_page_token"]}
        ids = list(self.scope.experiments_among(found))
        self._experiment_ids = (now_ms, ids)
        return ids

    async def _remembered(self) -> int:
        stored = await self.memory.aget(WATERMARK, 0) if self.memory is not None else 0
        return stored if isinstance(stored, int) else 0

    async def _advance(self, now_ms: int) -> None:
        self._watermark_ms = now_ms
        if self.memory is not None and now_ms - self._stored_ms >= WATERMARK_EVERY_MS:
            await self.memory.aset(WATERMARK, now_ms)
            self._stored_ms = now_ms


def _json(answer: httpx.Response, server: MlflowServer, path: str) -> dict[str, Any]:
    if answer.is_error:
        raise error_of(answer, server, path)
    return dict(answer.json())
