"""Background processes and their children: start, find and stop them across separate commands."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
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
    """Start command of a service. `name` is also the name of its log and pid file; `env` is the whole environment."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: Path  # inside the state folder; identifies orphans of the stack
    # Sent to the first process alone, whose children are not the stack's to stop. None: SIGTERM to every process.
    stop_signal: signal.Signals | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A started process. `identity` differs for a later process with the same pid."""

    name: str
    pid: int
    identity: str
    stop_signal: int | None = None

    def is_alive(self) -> bool:
        """Return True while this process runs; False for a zombie or another process with its pid."""
        return identity(self.pid) == self.identity


def identity(pid: int) -> str | None:
    """Return a text that identifies a process among all owners of its pid; None when it has ended.

    On Linux: boot id and clock ticks from boot to start. Wall-clock start times change when the clock is set.
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
    """Start the command and write its pid file. A separate session keeps Ctrl-C at the terminal from it."""
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
        started = identity(process.pid) or "ended immediately"
        record = Record(command.name, process.pid, started, command.stop_signal)
        write_private(layout.pids / f"{command.name}.json", json.dumps(dataclasses.asdict(record)) + "\n")
        # Its finalizer runs here, while signals are deferred: Python ignores a KeyboardInterrupt in a finalizer.
        del process
    return record


def find(layout: Layout, name: str) -> Record | None:
    """Return the running process with this name, or None."""
    record = _read(layout, name)
    return record if record is not None and record.is_alive() else None


def has_ended(layout: Layout, name: str) -> bool:
    """Return True when the process has ended by itself. A service that `stop` has stopped has no pid file."""
    record = _read(layout, name)
    return record is not None and not record.is_alive()


def started_at(record: Record) -> float:
    """Return the start of a running process, as a time stamp that may be a second early; infinity when it has ended."""
    try:
        return float(psutil.Process(record.pid).create_time())
    except psutil.Error:
        return math.inf


def _read(layout: Layout, name: str) -> Record | None:
    try:
        return Record(**json.loads((layout.pids / f"{name}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def await_ready(layout: Layout, name: str, is_ready: Callable[[], bool], began: float | None = None) -> None:
    """Wait until a service is ready. Raise `StackError` with the end of its log when it ends or is too slow.

    :param began: its start on the monotonic clock; None for now.
    """
    began = time.monotonic() if began is None else began
    while not is_ready():
        alive = find(layout, name) is not None
        waited = time.monotonic() - began
        if not alive or waited > START_TIMEOUT_S:
            problem = f"was not ready after {waited:.0f} s" if alive else "ended during its start"
            log = layout.logs / f"{name}.log"
            raise StackError(f"{name} {problem}. Last lines of {log}:\n{log_tail(layout, name)}")
        time.sleep(START_POLL_S)


def log_tail(layout: Layout, name: str, lines: int = TAIL_LINES) -> str:
    """Return the last lines of the service's log since its last start."""
    path = layout.logs / f"{name}.log"
    text = path.read_text(errors="replace") if path.exists() else ""
    since = text.rpartition("\n=== ")[2].splitlines()[1:]
    return "\n".join(since[-lines:])


def stop(layout: Layout, names: Iterable[str]) -> list[str]:
    """Stop services in parallel and wait until all their processes have ended. Return the names that ran."""
    records = [record for name in names if (record := _read(layout, name))]
    families = {record.name: _family(layout, record) for record in records}
    members = [process for family in families.values() for process in family]
    for record in records:
        _signal(families[record.name], signal.Signals(record.stop_signal or signal.SIGTERM))
    _wait(members, STOP_TIMEOUT_S)
    # Search again: a child may have started after the first search.
    members += [process for record in records for process in _orphans(layout, record)]
    _signal(members, signal.SIGKILL)
    _wait(members, STOP_TIMEOUT_S)
    for record in records:
        (layout.pids / f"{record.name}.json").unlink(missing_ok=True)
    return [name for name, family in families.items() if family]


def _family(layout: Layout, record: Record) -> list[psutil.Process]:
    """Return every process of a service that `stop` ends. Workers of a dead server still hold its port."""
    if not record.is_alive():
        return _orphans(layout, record)
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(record.pid)
        if record.stop_signal is not None:
            return [leader]
        return list({leader, *leader.children(recursive=True), *_session(record.pid)})
    return _orphans(layout, record)


def _orphans(layout: Layout, record: Record) -> list[psutil.Process]:
    """Return the remaining processes in the session of an ended leader.

    The kernel may reuse the session number after its last member ended. So the result is empty when the pid is in use
    again, and each member must have its working directory inside the state folder, as all processes of the stack do.
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
        # psutil compares the start time first and ignores a reused pid.
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _session(leader_pid: int) -> list[psutil.Process]:
    """Return the live processes of a session. Its number cannot be reused while one of them runs."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) == leader_pid:
                members.append(process)
    return members


def _wait(processes: Iterable[psutil.Process], timeout_s: float) -> None:
    """Wait until all processes have ended. A zombie counts as ended."""
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
