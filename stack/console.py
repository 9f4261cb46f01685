"""Consoles for the stack's output: plain lines, in colour on a terminal."""

from __future__ import annotations

import sys

from rich.console import Console

# A pipe or a log file has no width. rich would cut tables at 80 columns there.
_WIDTH = None if sys.stdout.isatty() else 140


def make_console() -> Console:
    """Return the console for progress and results."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=_WIDTH)


def make_error_console() -> Console:
    """Return the console for errors. It prints text in brackets unchanged, because logs contain it."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
