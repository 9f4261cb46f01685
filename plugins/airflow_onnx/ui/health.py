"""Health line of the pages: the watch, the pools, the measuring slot, MLflow and the object store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from airflow_onnx.ui import numbers
from airflow_onnx.ui.airflow_state import WatchState, watch_state
from airflow_onnx.ui.refreshed import Refreshed
from airflow_onnx.ui.release_index import Snapshot

log = logging.getLogger(__name__)

AGE_S = 10.0
_STORE_TIMEOUT_S = 2.0
_SILENT_AFTER = timedelta(seconds=60)
_AWS = "https://s3.amazonaws.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLine:
    """State of one part."""

    name: str
    text: str
    is_ok: bool


class Health:
    """The health of the parts that the pages do not read themselves.

    :param store: returns the address of the object store, an empty string for a store without a connection.
    """

    def __init__(self, store: Callable[[], str]) -> None:
        self._store_address = store
        self._parts = Refreshed(self._read, AGE_S)

    def lines(self, snapshot: Snapshot, waiting: int) -> Sequence[HealthLine]:
        """Return all lines.

        :param waiting: the number of releases that wait for the measuring slot.
        """
        found = self._parts.get(first_wait_s=0.5)
        watch, store = found or (None, None)
        lines = [_watch(watch)] if watch else []
        lines += pools(watch)
        lines.append(_queue(waiting))
        lines.append(_mlflow(snapshot))
        return [*lines, store] if store else lines

    def _read(self, _: object) -> tuple[WatchState | None, HealthLine | None]:
        return _or_none(watch_state), _or_none(self._store)

    def _store(self) -> HealthLine | None:
        address = self._store_address()
        if not address:
            return None
        try:
            # Any answer will do: the request has no credentials.
            httpx.head(address, timeout=_STORE_TIMEOUT_S)
        except httpx.HTTPError:
            return HealthLine(name="Store", text="does not answer", is_ok=False)
        return HealthLine(name="Store", text="answers", is_ok=True)


def store_address(extra: dict[str, Any]) -> str:
    """Return the address of the store from the extra that `s3_store.aws_extra` returns."""
    found = str(extra.get("endpoint_url") or _AWS)
    return found if found.startswith(("http://", "https://")) else ""


def _watch(state: WatchState) -> HealthLine:
    if not state.exists:
        return HealthLine(name="Watch", text="Airflow has no DAG that watches MLflow", is_ok=False)
    if state.paused:
        text = f"{', '.join(state.paused)} is paused: finished training runs are not released"
        return HealthLine(name="Watch", text=text, is_ok=False)
    beat = state.triggerer_at
    if beat is None or datetime.now(UTC) - beat > _SILENT_AFTER:
        return HealthLine(name="Watch", text="is on, but no triggerer polls MLflow", is_ok=False)
    ran = f", last run {numbers.since(state.last_run_at)} ago" if state.last_run_at else ""
    return HealthLine(name="Watch", text=f"is on, triggerer seen {numbers.since(beat)} ago{ran}", is_ok=True)


def pools(state: WatchState | None) -> Iterator[HealthLine]:
    """Yield a line if a pool is missing: its tasks would wait for ever, without an error."""
    if missing := state.missing_pools if state else ():
        names = f"the pool{'s' * (len(missing) > 1)} {', '.join(missing)}"
        yield HealthLine(name="Pools", text=f"Airflow lacks {names}: tasks wait there for ever", is_ok=False)


def _queue(waiting: int) -> HealthLine:
    text = f"{waiting} wait for the slot" if waiting else "nothing waits for the slot"
    return HealthLine(name="Measuring", text=text, is_ok=True)


def _mlflow(snapshot: Snapshot) -> HealthLine:
    if snapshot.problem:
        return HealthLine(name="MLflow", text="does not answer", is_ok=False)
    return HealthLine(name="MLflow", text=f"read {numbers.since(snapshot.read_at)} ago", is_ok=True)


def _or_none(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - a database or secrets backend may raise anything; the page stays open
        log.warning("A part of the health line cannot be read: %s", type(error).__name__)
        return None
