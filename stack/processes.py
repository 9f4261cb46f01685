"""Start, find and stop one background process and all that it starts, across separate commands."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from stack import interrupts
from stack.errors import StackError
from stack.layout import Layout
from stack.private import write_private

START_TIMEOUT_S = 120.0
START_POLL_S = 0.3
STOP_TIMEOUT_S = 20.0
TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class Command:
    """A service to run: its name (of the log and the pid file), its arguments and its whole environment."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: Path  # inside the state folder: by it an orphan is known as the stack's own


@dataclass(frozen=True, slots=True)
class Record:
    """A started process. `identity` tells it from a later process that got the same pid."""

    name: str
    pid: int
    identity: str

    def is_alive(self) -> bool:
        """Tell whether this very process still runs; False for a zombie and for a stranger with its pid."""
        return identity(self.pid) == self.identity


def identity(pid: int) -> str | None:
    """Return what stays the same for a process and differs for the next owner of its pid; None when it is gone.

    On Linux: the boot and the clock ticks from boot to start. Wall-clock start times move when the clock is set.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists():
            return f"{process.create_time():.2f}"
        # The second field is the program's name in parentheses and may hold spaces; the start time is field 22.
        ticks = stat.read_text().rpartition(")")[2].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{ticks}"
    except (psutil.Error, OSError):
        return None


def start(layout: Layout, command: Command) -> Record:
    """Start the command in its own session (a Ctrl-C at the terminal does not reach it) and write its pid file."""
    with (layout.logs / f"{command.name}.log").open("ab") as log, interrupts.deferred():
        log.write(f"\n=== {time.strftime('%Y-%m-%d %H:%M:%S')} start {command.name}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command.argv,
            env=command.env,
            cwd=command.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        record = Record(command.name, process.pid, identity(process.pid) or "ended at once")
        write_private(layout.pids / f"{command.name}.json", json.dumps(dataclasses.asdict(record)) + "\n")
    return record


def find(layout: Layout, name: str) -> Record | None:
    """Return the running process of that name, or None."""
    record = _read(layout, name)
    return record if record is not None and record.is_alive() else None


def _read(layout: Layout, name: str) -> Record | None:
    try:
        return Record(**json.loads((layout.pids / f"{name}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def await_ready(layout: Layout, name: str, is_ready: Callable[[], bool], began: float | None = None) -> None:
    """Wait until a started service is ready; raises `StackError` with the end of its log when it dies or is too slow.

    :param began: when it was started, on the monotonic clock, if not just now.
    """
    began = time.monotonic() if began is None else began
    while not is_ready():
        alive = find(layout, name) is not None
        waited = time.monotonic() - began
        if not alive or waited > START_TIMEOUT_S:
            problem = f"was not ready after {waited:.0f} s" if alive else "ended while it started"
            log = layout.logs / f"{name}.log"
            raise StackError(f"{name} {problem}. The end of {log}:\n{log_tail(layout, name)}")
        time.sleep(START_POLL_S)


def log_tail(layout: Layout, name: str, lines: int = TAIL_LINES) -> str:
    """Return the last lines that the service wrote since its last start."""
    path = layout.logs / f"{name}.log"
    text = path.read_text(errors="replace") if path.exists() else ""
    since = text.rpartition("\n=== ")[2].splitlines()[1:]
    return "\n".join(since[-lines:])


def stop(layout: Layout, names: Iterable[str]) -> list[str]:
    """Stop the named services together and wait until every process of theirs is gone; returns those that ran."""
    records = [record for name in names if (record := _read(layout, name))]
    families = {record.name: _family(layout, record) for record in records}
    members = [process for family in families.values() for process in family]
    _signal(members, signal.SIGTERM)
    _wait(members, STOP_TIMEOUT_S)
    # Looked for again: a child may have been born after the first look.
    members += [process for record in records for process in _orphans(layout, record)]
    _signal(members, signal.SIGKILL)
    _wait(members, STOP_TIMEOUT_S)
    for record in records:
        (layout.pids / f"{record.name}.json").unlink(missing_ok=True)
    return [name for name, family in families.items() if family]


def _family(layout: Layout, record: Record) -> list[psutil.Process]:
    """Return every process of a service: a server that dies alone leaves its workers behind, holding its port."""
    if not record.is_alive():
        return _orphans(layout, record)
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(record.pid)
        return list({leader, *leader.children(recursive=True), *_session(record.pid)})
    return _orphans(layout, record)


def _orphans(layout: Layout, record: Record) -> list[psutil.Process]:
    """Return what is left in the session of a leader that is gone.

    A session's number is not given to a new process while a member lives, but may be after; so nothing counts when the
    pid is in use again, and a member must also work inside the state folder, as all that the stack starts does.
    """
    if identity(record.pid) is not None:
        return []
    found = []
    for process in _session(record.pid):
        with contextlib.suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(layout.home):
                found.append(process)
    return found


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        # psutil compares the start time first, so that a pid reused meanwhile is left alone.
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _session(leader_pid: int) -> list[psutil.Process]:
    """Return the live processes of a session. Its number cannot be reused while one of them lives."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == leader_pid:
                members.append(process)
    return members


def _wait(processes: Iterable[psutil.Process], timeout_s: float) -> None:
    """Wait until all are gone; a zombie counts as gone, whoever should have collected it."""
    waiting = list(processes)
    deadline = time.monotonic() + timeout_s
    while waiting and time.monotonic() < deadline:
        waiting = [process for process in waiting if _is_running(process)]
        time.sleep(0.05)


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
