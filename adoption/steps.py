"""Timed steps, and their table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table

# From `pip install` to the first alias, on two quiet cores.
LIMIT_S = 180.0


@dataclass(slots=True)
class Step:
    """One step. A step that every deployment has done before, or that trains a model, is not counted."""

    name: str
    counted: bool
    seconds: float = 0.0


@dataclass(slots=True)
class Stopwatch:
    """Steps in their order."""

    console: Console
    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str, counted: bool = True) -> Iterator[None]:
        """Time the block. A block that raises leaves no step."""
        began = time.monotonic()
        with self.console.status(name):
            yield
        step = Step(name, counted, time.monotonic() - began)
        self.steps.append(step)
        self.console.print(f"  {step.seconds:6.1f} s  {name}{'' if counted else '  (not counted)'}")

    def counted_s(self) -> float:
        """Return the seconds of the counted steps so far."""
        return sum(step.seconds for step in self.steps if step.counted)


def table(steps: list[Step], title: str) -> Table:
    """Return the counted steps with the sum after each."""
    made = Table("step", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    made.add_column("seconds", justify="right")
    made.add_column("since pip install", justify="right")
    for name, seconds, since in rows(steps):
        made.add_row(name, seconds, since)
    return made


def rows(steps: list[Step]) -> list[tuple[str, str, str]]:
    """Return name, seconds and sum of each counted step."""
    found, since = [], 0.0
    for step in steps:
        if step.counted:
            since += step.seconds
            found.append((step.name, f"{step.seconds:.1f}", f"{since:.0f}"))
    return found
