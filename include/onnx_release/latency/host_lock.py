"""Measuring lock of a host: one measurement at a time, across processes and containers.

An Airflow pool counts measurements in the whole deployment. Two workers on one host, or two containers, only share a
file. `filelock` locks it with ``flock``, so the kernel frees the lock when its holder ends.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from onnx_release.errors import LatencyRefused, Transient
from onnx_release.limits import MEASURE_LOCK_POLL_S, MEASURE_LOCK_TIMEOUT_S
from onnx_release.records.base import Record

_log = logging.getLogger(__name__)
# Every account of the host may lock the file.
_MODE = 0o666
# Longest note of a holder. Another account may have written more into the file.
_NOTE_MAX_BYTES = 1000
_HOLDER_MAX_CHARACTERS = _NOTE_MAX_BYTES // 8
# Another account creates the file and then sets its mode. Between the two, this account has no permission.
_CREATION_S, _CREATION_POLL_S = 1.0, 0.05


class LockOptions(Record):
    """File of the lock and its holder.

    `path` is on a local file system of the host; None: no lock. `timeout_s` is the longest wait. `holder` names this
    process in the log of the processes that wait.
    """

    path: str | None = None
    timeout_s: float = MEASURE_LOCK_TIMEOUT_S
    holder: str = "unnamed"


def create_lock_file(path: Path) -> None:
    """Create the file of a lock, for a process that may not write into its folder. A failure is that of the lock."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, _MODE)
        try:
            os.fchmod(descriptor, _MODE)
        finally:
            os.close(descriptor)


@dataclass(slots=True)
class HostLock:
    """The lock of a host. `waited_s` is the time that this process has waited for it so far."""

    options: LockOptions = field(default_factory=LockOptions)
    waited_s: float = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock while the block runs.

        Raises:
            Transient: another process has held the lock for all of `timeout_s`; the message names it.
            LatencyRefused: `unusable_lock`, if the file is a link, a FIFO or a folder, if every account can replace
                it, or if this account cannot write to it.
        """
        if self.options.path is None:
            yield
            return
        path = Path(self.options.path)
        lock = FileLock(path, mode=_MODE, fallback_to_soft=False, on_acquired=self._take_over)
        began = time.monotonic()
        try:
            self._acquire(lock, path, began)
        finally:
            self.waited_s += time.monotonic() - began
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, lock: FileLock, path: Path, began: float) -> None:
        logged: set[str] = set()

        def log_holder() -> bool:
            holder, since = _read_note(path)
            if holder not in logged:
                # A warning: a worker slot waits here, so the worker runs more tasks at a time than it should.
                _log.warning("Waiting to measure: %s measures on this host, %s.", holder, since)
                logged.add(holder)
            return False

        while True:
            try:
                _require_lockable(path)
                lock.acquire(self.options.timeout_s, MEASURE_LOCK_POLL_S, cancel_check=log_holder)
            except Timeout as error:
                holder, since = _read_note(path)
                raise Transient(
                    "A measurement on this host",
                    f"waited for more than {self.options.timeout_s:g} s for the lock {path}; {holder} holds the lock, "
                    f"{since}",
                    "Give measuring workers a concurrency of 1, end that process if it hangs, or raise "
                    "`measure_lock_timeout_s`.",
                ) from error
            except PermissionError as error:
                if time.monotonic() - began > _CREATION_S:
                    raise _unusable(path, f"cannot be opened for reading and writing: {error.strerror}") from error
                time.sleep(_CREATION_POLL_S)
            except OSError as error:
                raise _unusable(path, f"cannot be opened and locked: {error.strerror}") from error
            else:
                return

    def _take_over(self, descriptor: int) -> None:
        """Check the locked file and write the holder's note into it."""
        path = Path(self.options.path or "")
        _require_one_file(path, os.fstat(descriptor))
        if not os.path.samestat(os.fstat(descriptor), path.lstat()):
            raise Transient(f"The measuring lock {path}", "was replaced while it was locked", "Run the task again.")
        holder = self.options.holder[:_HOLDER_MAX_CHARACTERS]
        note = json.dumps({"pid": os.getpid(), "holder": holder, "since": time.time()})
        # A full disk loses the note. The lock is held all the same.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, note.encode(), 0)


def _require_lockable(path: Path) -> None:
    """Refuse a file or a folder through which another account could redirect the lock or the note."""
    try:
        folder = path.parent.stat()
    except OSError as error:
        # Before filelock, which would create the folder.
        raise _unusable(path, f"has no usable folder: {error.strerror}") from error
    if folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        raise _unusable(path, f"is in {path.parent}, where every account can replace it")
    with suppress(FileNotFoundError):
        _require_one_file(path, path.lstat())


def _require_one_file(path: Path, file: os.stat_result) -> None:
    if stat.S_ISLNK(file.st_mode):
        raise _unusable(path, "is a symbolic link")
    if not stat.S_ISREG(file.st_mode):
        raise _unusable(path, "is not a regular file")
    if file.st_nlink > 1:
        raise _unusable(path, f"has {file.st_nlink} names, so writing to it changes another file")


def _unusable(path: Path, problem: str) -> LatencyRefused:
    return LatencyRefused(
        f"The measuring lock {path}",
        problem,
        "Remove it, or set `measure_lock` to a file in an existing folder that belongs to the workers alone.",
        code="unusable_lock",
    )


def _read_note(path: Path) -> tuple[str, str]:
    """Return the holder's name and the age of its lock, as texts. Any account may have written the note."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            note = json.loads(os.read(descriptor, _NOTE_MAX_BYTES))
        finally:
            os.close(descriptor)
        pid, age_s = int(note["pid"]), time.time() - float(note["since"])
        printable = "".join(c for c in str(note["holder"]) if c.isprintable())[:_HOLDER_MAX_CHARACTERS]
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return "an unknown process", "since an unknown time"
    return f"process {pid} ({printable or 'unnamed'})", f"for {max(0.0, age_s):.0f} s"
