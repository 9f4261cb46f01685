"""A value that a thread refreshes in the background, so that a slow server does not slow a page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Refreshed(Generic[T]):
    """The last result of a function, at most `age_s` old when pages are read.

    One thread at a time calls the function. A page waits for it, but only for a short time if it has an older result.

    :param read: takes the last result, None at first, and returns the next one. It must not raise an error.
    """

    def __init__(self, read: Callable[[T | None], T], age_s: float) -> None:
        self._read, self._age_s = read, age_s
        self._lock = threading.Lock()
        self._value: T | None = None
        self._read_at = -float("inf")
        self._done = threading.Event()
        self._done.set()

    def get(self, *, first_wait_s: float, wait_s: float = 0.15) -> T | None:
        """Return the newest result, or None if the first one takes longer than `first_wait_s`."""
        with self._lock:
            if self._done.is_set() and time.monotonic() - self._read_at > self._age_s:
                self._done.clear()
                threading.Thread(target=self._refresh, daemon=True).start()
        self._done.wait(first_wait_s if self._value is None else wait_s)
        return self._value

    def _refresh(self) -> None:
        try:
            self._value = self._read(self._value)
        finally:
            self._read_at = time.monotonic()
            self._done.set()
