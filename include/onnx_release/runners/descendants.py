"""Processes that a child has started, also those that left its group: their memory, and their end.

Only Linux lists them. Elsewhere there are none.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onnx_release.runners.system_calls import call

_PR_SET_CHILD_SUBREAPER = 36
_PROCESSES = Path("/proc")
_UNLIMITED_BYTES = 2**60
# A process that starts others faster than this ends them is rare, and its group has ended before.
_ROUNDS_MAX = 100


@contextmanager
def ended_afterwards() -> Iterator[None]:
    """End each process that the block leaves behind. The children that this process had before stay."""
    before = set(_children(os.getpid()))
    # A process whose parent has ended becomes a child of this one, instead of the first process of the system.
    with suppress(OSError, AttributeError):
        call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        for _ in range(_ROUNDS_MAX):
            left = set(_children(os.getpid())) - before
            if not left:
                break
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        with suppress(OSError, AttributeError):
            call("prctl", _PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def memory_bytes(pid: int) -> int:
    """Return the memory of a process and all that it has started, without the pages of files."""
    found, total = [pid], 0
    for one in found:
        found += _children(one)
        with suppress(OSError):
            for line in (_PROCESSES / str(one) / "status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:")):
                    total += int(line.split()[1]) * 1024
    return total


def machine_bytes(root: Path = Path("/")) -> int:
    """Return the memory of the machine, or of the container or control group if that is less.

    Args:
        root: The folder of ``sys``.
    """
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            sizes.append(int((root / "sys/fs/cgroup" / name).read_text()))
    return min(size for size in sizes if size < _UNLIMITED_BYTES)


def _children(pid: int) -> list[int]:
    """Return the processes that a process has started and those that it has adopted."""
    found: list[int] = []
    with suppress(OSError):
        for thread in (_PROCESSES / str(pid) / "task").iterdir():
            with suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found
