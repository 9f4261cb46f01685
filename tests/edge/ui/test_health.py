"""Health line of the pages: the pools."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from airflow_onnx.ui import health
from airflow_onnx.ui.airflow_state import WatchState


def state(*missing: str) -> WatchState:
    now = datetime.now(UTC)
    return WatchState(exists=True, paused=(), last_run_at=now, triggerer_at=now, missing_pools=missing)


@pytest.mark.parametrize("missing", [("onnx_export",), ("onnx_export", "onnx_watch")])
def test_every_missing_pool_is_named(missing: tuple[str, ...]) -> None:
    (line,) = health.pools(state(*missing))
    assert (line.name, line.is_ok) == ("Pools", False)
    assert all(name in line.text for name in missing)
    assert not list(health.pools(state()))
    assert not list(health.pools(None))
