"""CPU time of processes together with their descendants, ended ones included."""

from __future__ import annotations

import os
import resource
import time
from contextlib import suppress

import psutil  # type: ignore[import-untyped]

from stack import processes
from stack.context import Context
from stack.services import NAMES

SCHEDULER = "airflow-scheduler"


def tree_s(pid: int) -> float:
    """Return the CPU seconds of a process and all its descendants; 0 after its end.

    The kernel adds an ended child to its parent when the parent has waited for it.
    """
    try:
        root = psutil.Process(pid)
        found = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0.0
    return sum(_own_s(process) + _ended_children_s(process) for process in found)


def services_s(context: Context) -> dict[str, float]:
    """Return the CPU seconds of each service of a stack, and of LocalExecutor's tasks as ``tasks``.

    The scheduler forks the processes of the tasks, so the tasks are its tree without itself.
    """
    found = {}
    for name in NAMES:
        if record := processes.find(context.layout, name):
            found[name] = tree_s(record.pid)
            if name == SCHEDULER:
                own_s = _own_s(psutil.Process(record.pid))
                found |= {name: own_s, "tasks": found[name] - own_s}
    return found


def ended_children_s() -> float:
    """Return the CPU seconds of all ended children of this process, and of their children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def difference(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """Return the seconds of each name between two readings."""
    return {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}


def idle_rates(context: Context, seconds: float) -> dict[str, float]:
    """Return the CPU seconds per second of each service without work, measured for some seconds."""
    before, began = services_s(context), time.monotonic()
    time.sleep(seconds)
    used = difference(services_s(context), before)
    return {name: used_s / (time.monotonic() - began) for name, used_s in used.items()}


def cpus() -> int:
    """Return the number of CPUs that a process of the stack may use."""
    return len(os.sched_getaffinity(0))


def _own_s(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _ended_children_s(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.children_user + times.children_system)
    return 0.0
