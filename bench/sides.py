"""Two or more ways to do the same, each in fresh processes, by turns."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.marking import memory_bytes
from bench.results import say
from stack import children
from stack.environment import clean_environment
from stack.errors import StackError
from stack.layout import REPO

# A child's peak is read until it ends: what it grows by in its last moments is missed, so they are kept short.
_LOOK_S = 0.05
_SAID_CHARACTERS = 2000
# Only of our own modules is it known that an import does nothing else.
_OURS = ("onnx_release.", "bench.")


@dataclass(frozen=True, slots=True)
class Step:
    """A module run as ``python -m``, whose last line is what `marking.Marked` reports; `env` is set on top."""

    module: str
    arguments: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one run of a side took: its steps' marked seconds in all, and the peak of any of their processes.

    `steps` has what each said of itself, and its children's peaks under ``children``.
    """

    wall_s: float
    peak_bytes: int
    steps: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A name, and the steps that do the work one after the other; `reset` undoes them before the next run."""

    name: str
    steps: Callable[[], Sequence[Step]]
    reset: Callable[[], None] = lambda: None

    def run(self) -> Taken:
        """Run the steps; raises `StackError` with the end of its output when one fails."""
        try:
            found = [run_step(step) for step in self.steps()]
        finally:
            self.reset()
        return taken_by(found)


def taken_by(steps: Sequence[dict[str, Any]]) -> Taken:
    """Return what these steps took together."""
    return Taken(wall_s=sum(one["wall_s"] for one in steps), peak_bytes=max(map(highest_of, steps)), steps=list(steps))


def highest_of(step: Mapping[str, Any]) -> int:
    """Return the peak of whichever was larger, the step's own process or one that it started."""
    return max(int(step["peak_bytes"]), *(int(child["peak_bytes"]) for child in step["children"]), 0)


def by_turns(sides: Sequence[Side], rounds: int) -> dict[str, list[Taken]]:
    """Run every side once a round, in an order that turns round with each (ABBA), so that a drift falls on all."""
    taken: dict[str, list[Taken]] = {side.name: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            one = side.run()
            taken[side.name].append(one)
            say(
                f"round {number + 1} of {rounds}: {side.name}: {one.wall_s:.2f} s, peak {one.peak_bytes / 1e6:.0f} MB "
                "above imports"
            )
    return taken


def ratio(
    ours: Sequence[Taken], theirs: Sequence[Taken], of: Callable[[Taken], float] = lambda taken: taken.wall_s
) -> tuple[float, tuple[float, float]]:
    """Return the ratio of the medians, and the least and the largest ratio within a round.

    The second always holds the first: where every round's ratio is within bounds, so is that of the medians.
    """
    mine, other = [of(one) for one in ours], [of(one) for one in theirs]
    pairs = [a / b for a, b in zip(mine, other, strict=True)]
    return statistics.median(mine) / statistics.median(other), (min(pairs), max(pairs))


def peak(taken: Taken) -> float:
    """Return the peak of any of the processes."""
    return taken.peak_bytes


def in_detail(taken: Mapping[str, Sequence[Taken]]) -> dict[str, Any]:
    """Return every run as it goes into the results."""
    return {
        name: [{"wall_s": one.wall_s, "peak_bytes": one.peak_bytes, "steps": one.steps} for one in runs]
        for name, runs in taken.items()
    }


def run_step(step: Step) -> dict[str, Any]:
    """Run a step in a fresh process and return what it says, with the ``children`` that it started.

    :raises StackError: with the end of its output, when it fails.
    """
    path = ":".join(str(REPO / name) for name in ("include", "plugins", "."))
    env = clean_environment(**{"PYTHONPATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", **step.env})
    argv = [sys.executable, "-m", step.module, *step.arguments]
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as scratch,
        children.child(argv, env, Path(scratch)) as process,
        _Watch(process.pid) as watch,
    ):
        output, _ = process.communicate()
    if process.returncode != 0:
        what = " ".join((step.module, *step.arguments[:2]))
        raise StackError(f"{what} ended with status {process.returncode}:\n{output.strip()[-_SAID_CHARACTERS:]}")
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return {"step": " ".join((step.module, *step.arguments[:1])), **found, "children": watch.peaks()}


class _Watch:
    """Reads the peaks of the descendants of a process for as long as the block lasts."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: dict[int, tuple[str, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def peaks(self) -> list[dict[str, Any]]:
        """Return each descendant's peak, above its imports where it runs a module of this project."""
        return [
            {
                "module": module,
                "peak_bytes": max(0, highest - (imports_bytes(module) if module.startswith(_OURS) else 0)),
            }
            for module, highest in self._seen.values()
        ]

    def _look(self) -> None:
        while not self._over.wait(_LOOK_S):
            for pid in _descendants(self._pid):
                highest, module = memory_bytes(pid, "VmHWM"), _module_of(pid)
                # One that has ended, and is not yet waited for, has neither: what was seen of it before stands.
                if not highest or module is None:
                    continue
                # Between its fork and its exec a child is its parent, by its memory and its name.
                known, before = self._seen.get(pid, ("", 0))
                self._seen[pid] = (module, highest if module != known else max(before, highest))


@lru_cache
def imports_bytes(module: str) -> int:
    """Return what a fresh process holds in memory once it has imported the module."""
    found = run_step(Step("bench.marking", (module,)))
    return int(found["imports_bytes"])


def _descendants(pid: int) -> list[int]:
    try:
        # A process, or one of its threads, may end between the listing and the reading.
        own = [int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in _children(task)]
    except OSError:
        return []
    return [descendant for child in own for descendant in (child, *_descendants(child))]


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except OSError:
        return []


def _module_of(pid: int) -> str | None:
    """Return what follows ``-m`` on a process's command line, empty without one; None when the process has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if words == [""]:
        return None
    return words[words.index("-m") + 1] if "-m" in words[:-1] else ""
