"""Ctrl-C, a closed terminal and a polite kill: one way out, and never in the wrong moment."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def install() -> None:
    """Treat all three as Ctrl-C, so that the clean-up runs."""
    for number in NUMBERS:
        signal.signal(number, _interrupt)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let a signal wait until the block ends: one between a fork and the noting of its pid would lose the child."""
    seen: list[int] = []
    with _handlers(lambda number, frame: seen.append(number)):
        yield
    if seen:
        raise KeyboardInterrupt


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Let an impatient second Ctrl-C pass: stopping takes seconds, and half of it leaves processes behind."""
    with _handlers(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handlers(handler: signal._HANDLER) -> Iterator[None]:
    before = [signal.signal(number, handler) for number in NUMBERS]
    try:
        yield
    finally:
        for number, old in zip(NUMBERS, before, strict=True):
            signal.signal(number, old)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
