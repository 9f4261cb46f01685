"""Interval between the log lines of a long step."""

from __future__ import annotations

import time

PROGRESS_S = 5.0


class Progress:
    """Clock of one step: a line is due when the interval has passed since the last one."""

    def __init__(self, interval_s: float = PROGRESS_S) -> None:
        self._interval_s = interval_s
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Return True once in each interval."""
        now = time.monotonic()
        if now - self._last < self._interval_s:
            return False
        self._last = now
        return True
