"""One measurement at a time on a host: a lock that any process there can take, and that ends with its holder.

A pool counts measurements in all of Airflow and knows no hosts; two workers on one host, or two containers, know
nothing of each other. What they share is a file. The kernel holds the lock (``flock``), and frees it when
a process ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from onnx_release.errors import Refused, Transient
from onnx_release.limits import MEASURE_LOCK_POLL_S, MEASURE_LOCK_TIMEOUT_S
from onnx_release.records.base import Record

_log = logging.getLogger(__name__)
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_MODE = 0o666
# What a holder writes about itself is this long at most; whoever may open the file may have written more.
_TOLD_MAX_BYTES = 1000
# How often to try to open a file that others are just making, in s.
_OPENING_TRIES, _OPENING_PAUSE_S = 20, 0.05


class LockOptions(Record):
    """Which file, on a file system of the host's own, and who takes it; an empty `path` is no lock at all.

    `timeout_s` bounds the waiting, and `holder` is what others are told of the holder while they wait.
    """

    path: str = ""
    timeout_s: float = MEASURE_LOCK_TIMEOUT_S
    holder: str = ""


@dataclass(slots=True)
class HostLock:
    """The lock, and the seconds that were waited for it so far."""

    options: LockOptions = field(default_factory=LockOptions)
    waited_s: float = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the lock and hold it for as long as the block runs.

        :raises Transient: when others held it for all of `timeout_s`; the message names the holder.
        :raises Refused: when the file cannot serve as a lock: a link, a folder where anyone may replace it, no rights.
        """
        if not self.options.path:
            yield
            return
        descriptor = self._taken(Path(self.options.path))
        try:
            yield
        finally:
            # A process that this one has forked meanwhile has the file open too: closing alone would leave it locked.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _taken(self, path: Path) -> int:
        began, said = time.monotonic(), ""
        while isinstance(other := _take(path, self.options.holder), _Other):
            waited_s = time.monotonic() - began
            if waited_s >= self.options.timeout_s:
                self.waited_s += waited_s
                raise Transient(
                    f"the measuring on this host (lock {path})",
                    f"waited for more than {self.options.timeout_s:g} s; {other.who} holds the lock, {other.since}",
                    "Give measuring workers a concurrency of 1, end that process if it hangs, or raise "
                    "`measure_lock_timeout_s`.",
                )
            if other.who != said:
                # A warning, since a slot waits here: the worker takes more tasks at once than it should.
                _log.warning("Waiting to measure: %s measures on this host, %s.", other.who, other.since)
                said = other.who
            time.sleep(min(MEASURE_LOCK_POLL_S, self.options.timeout_s - waited_s))
        self.waited_s += time.monotonic() - began
        return other


@dataclass(frozen=True, slots=True, kw_only=True)
class _Other:
    """Who holds the lock, in words."""

    who: str = "a process that does not say who it is"
    since: str = "nobody knows since when"


def _take(path: Path, holder: str) -> int | _Other:
    """Try once; return the open file whose lock is taken, or who has it.

    The file is opened anew each time: somebody may have removed it, and another process made it again.
    """
    descriptor = _opened(path)
    try:
        if _locked(descriptor, path):
            _tell(descriptor, holder)
            return descriptor
        other = _told(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return other


def _opened(path: Path) -> int:
    """Open the lock's file, or make it for everyone on the host, whatever the account of his worker."""
    for left in reversed(range(_OPENING_TRIES)):
        try:
            return _require_lockable(_open(path), path)
        except (FileExistsError, FileNotFoundError, PermissionError) as error:
            # Another process is just making it, and has not opened it to everyone yet.
            if left == 0:
                raise _unusable(path, error) from error
            time.sleep(_OPENING_PAUSE_S)
        except OSError as error:
            raise _unusable(path, error) from error
    raise AssertionError("the last try returns or raises")


def _open(path: Path) -> int:
    try:
        # Not with O_CREAT: in a sticky folder the kernel refuses that for another account's file (protected_regular).
        return os.open(path, _FLAGS)
    except FileNotFoundError:
        descriptor = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, _MODE)
        os.fchmod(descriptor, _MODE)
        return descriptor


def _require_lockable(descriptor: int, path: Path) -> int:
    """Refuse what was put there to have this process write elsewhere, or lock another file than others."""
    file, folder = os.fstat(descriptor), path.parent.stat()
    wrong = {
        "is no regular file": not stat.S_ISREG(file.st_mode),
        f"has {file.st_nlink} names, so that writing to it changes another file": file.st_nlink > 1,
        f"lies in {path.parent}, where everyone may replace it": bool(folder.st_mode & stat.S_IWOTH)
        and not folder.st_mode & stat.S_ISVTX,
    }
    for problem, holds in wrong.items():
        if holds:
            os.close(descriptor)
            raise _refused(path, problem)
    return descriptor


def _unusable(path: Path, error: OSError) -> Refused:
    if error.errno == errno.ELOOP:
        return _refused(path, "is a symbolic link")
    return _refused(path, f"cannot be opened for reading and writing: {error.strerror}")


def _refused(path: Path, problem: str) -> Refused:
    return Refused(
        f"the measuring lock {path}",
        problem,
        "Remove it, or set `measure_lock` to a file in a folder that exists and belongs to the workers alone.",
    )


def _locked(descriptor: int, path: Path) -> bool:
    """Try to take the lock; a file that has meanwhile another's place is nobody else's lock, and so none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _refused(path, f"cannot be locked: {error.strerror}") from error
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _tell(descriptor: int, holder: str) -> None:
    told = json.dumps({"pid": os.getpid(), "holder": holder[: _TOLD_MAX_BYTES // 8], "since": time.time()})
    # On a full disk nobody is told, and the lock holds all the same.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, told.encode(), 0)


def _told(descriptor: int) -> _Other:
    """Read what the holder wrote; any account of the host may have written it, so only a few words of it are taken."""
    try:
        told = json.loads(os.pread(descriptor, _TOLD_MAX_BYTES, 0))
        pid, for_s, holder = int(told["pid"]), time.time() - float(told["since"]), str(told["holder"])
        printable = "".join(c for c in holder if c.isprintable())[: _TOLD_MAX_BYTES // 8]
        return _Other(who=f"process {pid} ({printable or 'without a name'})", since=f"for {max(0.0, for_s):.0f} s now")
    except (ValueError, TypeError, KeyError, OverflowError):
        return _Other()
