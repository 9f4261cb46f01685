"""What a measurement must say of the machine it was taken on, and whether others were using it."""

from __future__ import annotations

import math
import os
import platform
import time
from pathlib import Path

from onnx_release.records import HostInfo


def usable_cpus() -> int:
    """Return how many CPUs this process may keep busy: its affinity, bounded by its control group's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(Path("/sys/fs/cgroup"))
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def _cgroup_quota(root: Path) -> float | None:
    """Return the CPUs that a container's limit amounts to (cgroup v2, then v1), or None where there is no limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu/cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota_us / period_us if quota_us > 0 else None


def describe_host() -> HostInfo:
    """Describe the machine as it is now."""
    return HostInfo(
        cpu_model=_cpu_model(),
        logical_cpus=os.cpu_count() or 1,
        usable_cpus=usable_cpus(),
        load_1m=os.getloadavg()[0],
        platform=platform.platform(),
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine() or "unknown")


class CpuWait:
    """How much of their time this process's threads waited for a CPU, since the object was made.

    The kernel's scheduler counts it, so it holds in a container and on a shared host, where a load average does not.
    A thread that ended takes its count along; what is left says too little then, never too much.
    """

    def __init__(self) -> None:
        self._begin_ns = time.perf_counter_ns()
        self._begin = _thread_times()

    def share(self) -> float | None:
        """Return waiting / (running + waiting), in [0, 1], or None where the kernel does not tell.

        Less than one thread's worth of work counts as that: a process that mostly sleeps is not disturbed by a wait.
        """
        now = _thread_times()
        if not now:
            return None
        run_ns = wait_ns = 0
        for thread, (ran, waited) in now.items():
            ran_before, waited_before = self._begin.get(thread, (0, 0))
            run_ns += ran - ran_before
            wait_ns += waited - waited_before
        elapsed_ns = time.perf_counter_ns() - self._begin_ns
        return wait_ns / max(run_ns + wait_ns, elapsed_ns, 1)


def _thread_times() -> dict[str, tuple[int, int]]:
    """Return each thread's time on a CPU and time ready but waiting for one, in ns (Linux's schedstat)."""
    times = {}
    for file in Path("/proc/self/task").glob("*/schedstat"):
        try:
            ran, waited, _ = file.read_text().split()
        except (OSError, ValueError):
            continue  # the thread has just ended, or the kernel was built without these counts
        times[file.parent.name] = (int(ran), int(waited))
    return times
