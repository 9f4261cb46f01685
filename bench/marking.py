"""What a side of a comparison says of itself: the wall time of the work it marks, and its peak of resident memory.

``python -m bench.marking MODULE...`` imports modules and does nothing: what a process costs before its work.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_STATUS = "/proc/{}/status"
_RESET_PEAK = "5"


class Marked:
    """Made when a process has imported all that it needs: from here on its memory counts, and its time where marked.

    Resident memory is the kernel's, mapped files included: their pages count as long as they are in memory, though it
    could drop them at any time.
    """

    def __init__(self) -> None:
        self._import_s = _age_s()
        reset_peak()
        self._imports_bytes = memory_bytes(os.getpid(), "VmRSS")
        self._wall_s = 0.0
        self._aside: dict[str, float] = {}

    @contextmanager
    def work(self) -> Iterator[None]:
        """Count the block's wall time."""
        began = time.perf_counter()
        yield
        self._wall_s += time.perf_counter() - began

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Report the block's wall time under its own name, in seconds, and do not count it."""
        began = time.perf_counter()
        yield
        self._aside[name] = time.perf_counter() - began

    def report(self, **found: Any) -> None:
        """Print all of it, and what else was found, as one line of JSON, the last of the output."""
        peak_bytes = memory_bytes(os.getpid(), "VmHWM")
        costs = {
            "wall_s": self._wall_s,
            "peak_bytes": peak_bytes - self._imports_bytes,
            "imports_bytes": self._imports_bytes,
            "import_s": self._import_s,
        }
        print(json.dumps({**found, **self._aside, **costs}), flush=True)


def reset_peak() -> None:
    """Let this process's peak begin anew; a kernel that does not take it counts all that was before, on every side."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def memory_bytes(pid: int, field: str) -> int:
    """Return a figure of ``/proc/PID/status``: VmRSS is resident now, VmHWM at most; 0 when the process has ended."""
    try:
        lines = Path(_STATUS.format(pid)).read_text().splitlines()
    except OSError:
        return 0
    # Linux counts in KiB, whatever "kB" says.
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def _age_s() -> float:
    """Return how long ago this process was started."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    Marked().report()
