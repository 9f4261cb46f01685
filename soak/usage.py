"""Memory and disk of a running stack, sampled by a thread."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from onnx_release.scratch import PREFIX
from stack import processes
from stack.context import Context
from stack.services import NAMES

SAMPLE_S = 2.0
TASKS = "tasks"
_SCHEDULER = "airflow-scheduler"


@dataclass(slots=True)
class Usage:
    """Samples of memory by service, and of disk by folder, in bytes. ``tasks`` are the processes of the tasks.

    `memory` is the proportional set size: pages that processes share count once. `resident` is the resident memory of
    each service's first process, which does not depend on the number of its children.
    """

    memory: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    resident: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    disk: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def peak_bytes(self, name: str) -> int:
        """Return the highest sample of a service or folder, 0 without one."""
        return max([*self.memory.get(name, ()), *self.disk.get(name, ())], default=0)

    def memory_peak_bytes(self) -> int:
        """Return the highest sum of one sample over all services."""
        return max((sum(one) for one in zip(*self.memory.values(), strict=False)), default=0)

    def growth(self, name: str) -> float:
        """Return the median resident memory of the last quarter of the samples over that of the second quarter."""
        found = self.resident.get(name, [])
        quarter = len(found) // 4
        if quarter == 0:
            return 1.0
        before, after = sorted(found[quarter : 2 * quarter]), sorted(found[-quarter:])
        return after[quarter // 2] / max(1, before[quarter // 2])


@contextlib.contextmanager
def sampled(context: Context) -> Iterator[Usage]:
    """Sample memory and disk of a stack while the block runs."""
    usage, ended = Usage(), threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            for name, size in _memory(context).items():
                usage.memory[name].append(size)
            for name, size in _resident(context).items():
                usage.resident[name].append(size)
            for name, size in _disk(context).items():
                usage.disk[name].append(size)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        ended.set()
        thread.join()


def _memory(context: Context) -> dict[str, int]:
    found = dict.fromkeys((*NAMES, TASKS), 0)
    for name in NAMES:
        record = processes.find(context.layout, name)
        if record is None:
            continue
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(record.pid)
            found[name] += _pss(record.pid)
            # The scheduler forks the processes of the tasks.
            part = TASKS if name == _SCHEDULER else name
            found[part] += sum(_pss(one.pid) for one in root.children(recursive=True))
    return found


def _resident(context: Context) -> dict[str, int]:
    found = {}
    for name in NAMES:
        if record := processes.find(context.layout, name):
            with contextlib.suppress(psutil.Error):
                found[name] = int(psutil.Process(record.pid).memory_info().rss)
    return found


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def _disk(context: Context) -> dict[str, int]:
    home = context.layout.airflow_home
    folders = {"staging": [home / "onnx_release_staging"], "cache": [home / "onnx_release_cache"]}
    folders["scratch"] = list(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))
    return {name: sum(map(_size, paths)) for name, paths in folders.items()}


def _size(folder: Path) -> int:
    """Return the bytes of the files of a folder. Files and folders that are removed meanwhile do not count."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(Path(path, name)).st_size
    return total
