"""Comparison of processes: two or more sides of the same work, each in fresh processes, in interleaved rounds."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.figure import Spread, progress
from bench.step import memory_bytes
from stack import children
from stack.environment import clean_environment
from stack.errors import StackError
from stack.layout import REPO

# A child's peak is read until its end. Growth in its last moments is missed, so the interval is short.
_INTERVAL_S = 0.05
_OUTPUT_CHARACTERS = 2000
# Modules whose import has no other effect.
_OURS = ("onnx_release.", "bench.")


@dataclass(frozen=True, slots=True)
class Step:
    """Function of a `bench.step`, as ``module:function``, with its arguments; `env` is set on top."""

    target: str
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Run the step in a fresh process and return its report, with the peaks of its ``children``.

        Raises:
            StackError: The step failed; the message has the end of its output.
        """
        path = ":".join(str(REPO / name) for name in ("include", "plugins", "."))
        env = clean_environment(**{"PYTHONPATH": path, **self.env})
        argv = [sys.executable, "-m", "bench.step", self.target, *self.arguments]
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as scratch,
            children.child(argv, env, Path(scratch)) as process,
            _ChildPeaks(process.pid) as peaks,
        ):
            output, _ = process.communicate()
        if process.returncode != 0:
            name = " ".join((self.target, *self.arguments[:1]))
            end = output.strip()[-_OUTPUT_CHARACTERS:]
            raise StackError(f"{name} ended with status {process.returncode}:\n{end}")
        found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
        return {"step": self.target.partition(":")[2], **found, "children": peaks.above_imports()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Cost of one run of a side: wall time of its steps in sum, the largest peak of a process, and the reports."""

    wall_s: float
    peak_bytes: int
    steps: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Name of a side and the steps of its work; `reset` removes their output before the next run."""

    name: str
    steps: Callable[[], Sequence[Step]]
    reset: Callable[[], None] = lambda: None

    def run(self) -> Cost:
        """Run the steps one after the other."""
        try:
            return cost_of([step.run() for step in self.steps()])
        finally:
            self.reset()


def cost_of(steps: Sequence[dict[str, Any]]) -> Cost:
    """Add up the reports of steps."""
    return Cost(wall_s=sum(one["wall_s"] for one in steps), peak_bytes=max(map(peak_of, steps)), steps=list(steps))


def peak_of(step: Mapping[str, Any]) -> int:
    """Return the peak of a step's own process or of its largest child, in bytes."""
    return max(int(step["peak_bytes"]), *(int(child["peak_bytes"]) for child in step["children"]), 0)


def interleave(sides: Sequence[Side], rounds: int) -> dict[str, list[Cost]]:
    """Run every side once per round, in alternating order (ABBA): a drift of the machine affects all sides."""
    costs: dict[str, list[Cost]] = {side.name: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            cost = side.run()
            costs[side.name].append(cost)
            peak_mb = cost.peak_bytes / 1e6
            progress(f"round {number + 1} of {rounds}: {side.name}: {cost.wall_s:.2f} s, peak {peak_mb:.0f} MB")
    return costs


def wall(cost: Cost) -> float:
    """Return the wall time in seconds."""
    return cost.wall_s


def peak(cost: Cost) -> float:
    """Return the peak of the largest process in bytes."""
    return cost.peak_bytes


def ratio(ours: Sequence[Cost], theirs: Sequence[Cost], of: Callable[[Cost], float] = wall) -> tuple[float, Spread]:
    """Return the ratio of the medians, and the least and the largest ratio within a round.

    The range always contains the value: limits that all rounds meet are met by the medians.
    """
    mine, other = [of(one) for one in ours], [of(one) for one in theirs]
    pairs = [a / b for a, b in zip(mine, other, strict=True)]
    return statistics.median(mine) / statistics.median(other), (min(pairs), max(pairs))


def median_and_range(values: Sequence[float]) -> tuple[float, Spread]:
    """Return the median, and the least and the largest value."""
    return statistics.median(values), (min(values), max(values))


def in_detail(costs: Mapping[str, Sequence[Cost]]) -> dict[str, Any]:
    """Return every run as it is written to the results."""
    return {name: [asdict(one) for one in runs] for name, runs in costs.items()}


class _ChildPeaks:
    """Peaks of memory of all descendants of a process during the block, read by a thread."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: dict[int, tuple[str, int]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _ChildPeaks:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def above_imports(self) -> list[dict[str, Any]]:
        """Return each descendant's peak, above its imports if it runs a module of this project."""
        return [
            {"module": module, "peak_bytes": max(0, peak - (imports_bytes(module) if module.startswith(_OURS) else 0))}
            for module, peak in self._seen.values()
        ]

    def _watch(self) -> None:
        while not self._over.wait(_INTERVAL_S):
            for pid in _descendants(self._pid):
                peak, module = memory_bytes(pid, "VmHWM"), _module_of(pid)
                # An ended child that was not waited for has neither: its earlier peak stays.
                if not peak or module is None:
                    continue
                # Between fork and exec a child has its parent's memory and name.
                name, before = self._seen.get(pid, ("", 0))
                self._seen[pid] = (module, peak if module != name else max(before, peak))


@lru_cache
def imports_bytes(module: str) -> int:
    """Return the memory of a fresh process after it has imported the module, in bytes."""
    return int(Step("bench.step:imports", (module,)).run()["imports_bytes"])


def _descendants(pid: int) -> list[int]:
    try:
        # A process or a thread may end between listing and reading.
        own = [int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in _read(task / "children").split()]
    except OSError:
        return []
    return [descendant for child in own for descendant in (child, *_descendants(child))]


def _module_of(pid: int) -> str | None:
    """Return the word after ``-m`` on a process's command line, empty without one; None after its end."""
    words = _read(Path(f"/proc/{pid}/cmdline")).split("\0")
    if words == [""]:
        return None
    return words[words.index("-m") + 1] if "-m" in words[:-1] else ""


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
