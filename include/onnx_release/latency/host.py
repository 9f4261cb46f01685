"""Description of the measuring machine, and the time that its other processes take."""

from __future__ import annotations

import math
import os
import platform
import time
from pathlib import Path

from onnx_release.records import HostInfo


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of CPUs for this process: its affinity, limited by the quota of its control group.

    Args:
        cgroup: the folder of the control group.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(cgroup)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def cgroup_quota(folder: Path) -> float | None:
    """Return the CPU quota of a control group in CPUs (cgroup v2, then v1), or None without a limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((folder / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota_us / period_us if quota_us > 0 else None


def describe_host() -> HostInfo:
    """Describe the machine and its present load."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return HostInfo(
        cpu_model=next(models, platform.processor() or platform.machine() or "unknown"),
        logical_cpus=os.cpu_count() or 1,
        usable_cpus=usable_cpus(),
        load_1m=os.getloadavg()[0],
        platform=platform.platform(),
    )


class CpuWait:
    """Share of time that the threads of a process have waited for a CPU since the object was created.

    The kernel's scheduler counts the waiting. So the share is right in a container and on a shared host, where a load
    average is not. The count of a thread ends with the thread, so the share can be too low and never too high.

    Args:
        pid: the process; None for this one.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._process = "self" if pid is None else str(pid)
        self._begin_ns = time.perf_counter_ns()
        self._begin = _thread_times(self._process)

    def share(self) -> float | None:
        """Return waiting / (running + waiting), in [0, 1], or None if the kernel does not count it.

        The divisor is at least the elapsed time: a wait does not disturb a process that mostly sleeps.
        """
        now = _thread_times(self._process)
        if not now:
            return None
        run_ns = wait_ns = 0
        for thread, (ran, waited) in now.items():
            ran_before, waited_before = self._begin.get(thread, (0, 0))
            run_ns += ran - ran_before
            wait_ns += waited - waited_before
        elapsed_ns = time.perf_counter_ns() - self._begin_ns
        return wait_ns / max(run_ns + wait_ns, elapsed_ns, 1)


def _thread_times(process: str) -> dict[str, tuple[int, int]]:
    """Return each thread's time on a CPU and its time of waiting for one, in ns (Linux's schedstat)."""
    times = {}
    for file in Path("/proc", process, "task").glob("*/schedstat"):
        try:
            ran, waited, _ = file.read_text().split()
        except (OSError, ValueError):
            continue  # the thread has just ended, or the kernel was built without these counts
        times[file.parent.name] = (int(ran), int(waited))
    return times
