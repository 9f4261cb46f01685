"""Entry point of all measured steps: ``python -m bench.step MODULE:FUNCTION [ARGUMENT...]``.

A step is a function of a `Meter` and of text arguments. It imports its packages first and marks its work with the
meter. The last line of its output is the meter's report and the step's own findings as JSON.
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


class Meter:
    """Clock and memory counter of one process.

    Memory is the kernel's resident memory. Pages of mapped files count while they are resident.
    """

    def __init__(self) -> None:
        self._import_s: float | None = None
        self._imports_bytes = 0
        self._wall_s = 0.0
        self._aside: dict[str, float] = {}

    def start(self) -> None:
        """Count memory from here on. The first block starts the meter, if this was not called."""
        if self._import_s is None:
            self._import_s = _age_s()
            reset_peak()
            self._imports_bytes = memory_bytes(os.getpid(), "VmRSS")

    @contextmanager
    def work(self) -> Iterator[None]:
        """Count the wall time of the block."""
        self.start()
        began = time.perf_counter()
        yield
        self._wall_s += time.perf_counter() - began

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Report the wall time of the block under a separate name, in seconds."""
        self.start()
        began = time.perf_counter()
        yield
        self._aside[name] = time.perf_counter() - began

    def report(self) -> dict[str, Any]:
        """Return wall time, peak of memory above the imports, and the cost of the imports."""
        self.start()
        peak_bytes = memory_bytes(os.getpid(), "VmHWM") - self._imports_bytes
        costs = {"wall_s": self._wall_s, "peak_bytes": peak_bytes, "imports_bytes": self._imports_bytes}
        return {**self._aside, **costs, "import_s": self._import_s}


def reset_peak() -> None:
    """Reset this process's peak of resident memory; some kernels refuse this, and then all earlier memory counts."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_bytes(pid: int, field: str) -> int:
    """Return VmRSS (resident now) or VmHWM (peak) from ``/proc/PID/status``; 0 after the end of the process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    # Linux counts in KiB here, although the unit reads "kB".
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def _age_s() -> float:
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


def imports(meter: Meter, module: str) -> None:
    """Import a module and do nothing else: the cost of a process before its work."""
    importlib.import_module(module)


def main(target: str, *arguments: str) -> None:
    """Run a step and print its report."""
    module, _, name = target.partition(":")
    meter = Meter()
    found = getattr(importlib.import_module(module), name)(meter, *arguments) or {}
    print(json.dumps({**found, **meter.report()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
