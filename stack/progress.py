"""Progress of a release: the lines of its log, and a live table on a terminal or else a line for each change."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from stack.release import TaskState

_COLOURS = {"success": "green", "failed": "red", "upstream_failed": "red", "running": "cyan", "up_for_retry": "yellow"}


class TaskProgress:
    """Context manager whose `show` displays the latest task states, and `log` the lines of a task."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._last: dict[str, tuple[str, int]] = {}
        # The number of log lines that were printed, by task and attempt.
        self._printed: dict[tuple[str, int], int] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, tasks: list[TaskState]) -> None:
        """Update the table, or print the changed states."""
        if self._live:
            self._live.update(_table(tasks))
            return
        for task in tasks:
            now = (task.state, task.attempt)
            if self._last.get(task.name, ("waiting", task.attempt)) != now:
                self._console.print(f"  {task.name:<18} {task.state}{_attempt(task)}{_seconds(task)}")
            self._last[task.name] = now

    def log(self, task: TaskState, lines: list[str]) -> None:
        """Print the new lines of a task's log."""
        key = task.name, task.attempt
        for line in lines[self._printed.get(key, 0) :]:
            self._console.print(f"    {line}", markup=False, highlight=False)
        self._printed[key] = max(len(lines), self._printed.get(key, 0))


def _table(tasks: list[TaskState]) -> Table:
    table = Table("task", "state", "time", title="release_onnx")
    for task in tasks:
        colour = _COLOURS.get(task.state, "dim")
        table.add_row(task.name, f"[{colour}]{task.state}[/]{_attempt(task)}", _seconds(task).strip())
    return table


def _attempt(task: TaskState) -> str:
    return f" (attempt {task.attempt})" if task.attempt > 1 else ""


def _seconds(task: TaskState) -> str:
    return f"  {task.seconds:.1f} s" if task.seconds is not None and task.state in ("success", "failed") else ""
