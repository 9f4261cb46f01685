"""Faults of the machines: a full disk, a memory limit, and a wrong clock of the trainer."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from onnx_release.training_runs import tags
from soak.case import Case, process_of
from soak.rig import Rig
from soak.scenario import Outcome, Scenario

_DISK_BYTES = 192 * 2**20
_BLOCK = bytes(2**20)
_DAY_MS = 24 * 3600 * 1000
# A model that is larger than the free space of the small disk.
_WIDE = 400_000


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    """Mount a small file system on the folder of the work folders."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={_DISK_BYTES}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)],  # noqa: S607 - the place differs by system
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)  # noqa: S607


def _full_disk(folder: str, before: str, task_id: str, rig: Rig, _random: random.Random) -> Outcome:
    """Fill a disk of the worker after a task, and free it after the first failed try of the next one."""
    place = rig.disk / folder
    try:
        with _small_disk(place):
            case = Case(rig, *rig.train(1, _WIDE)).trigger()
            case.await_task(before, "success")
            filler = place / "filler"
            with filler.open("wb") as file, suppress(OSError):
                while True:
                    file.write(_BLOCK)
                    file.flush()
            failed = case.await_task(task_id, "up_for_retry", "failed", "success")
            filler.unlink()
            case.await_end()
            problem = "" if failed and failed["state"] == "up_for_retry" else f"{task_id} did not meet the full disk"
            return case.outcome({"disk full": 1}, problem)
    except (PermissionError, FileNotFoundError) as error:
        return Outcome(skipped=f"a small file system cannot be mounted here: {error}")


def _memory(rig: Rig, _random: random.Random) -> Outcome:
    """Limit the memory of the export's processes to less than they use, in its first try."""
    case = Case(rig, rig.take()).trigger()
    task = case.await_task("export", "running")
    limited = 0
    while task and not limited and case.await_task("export", "running"):
        process = process_of(task)
        for each in (process, *process.children(recursive=True)) if process else ():
            with suppress(psutil.Error):
                bound = each.memory_info().vms
                each.rlimit(psutil.RLIMIT_AS, (bound, bound))
                limited += 1
        if process is None and task["id"] not in [one["id"] for one in case.tasks()]:
            break
        time.sleep(0.2)
    case.await_end()
    return case.outcome({"memory limit": int(limited > 0)})


def _clock(rig: Rig, _random: random.Random) -> Outcome:
    """Release a run that ended tomorrow by its trainer's clock, then one that ended now."""
    tomorrow, now = rig.take(), rig.take()
    ended_at_ms = int(time.time() * 1000) + _DAY_MS
    rig.client.set_terminated(tomorrow, end_time=ended_at_ms)
    first = Case(rig, tomorrow).trigger()
    first.await_end()
    second = Case(rig, now, first.model_name)
    second.dag_runs = [*first.dag_runs]
    second.trigger().await_end()
    note = second.answer().get(tags.ALIAS_NOTE, "")
    problem = "" if "stays at version 1" in note else f"the alias has moved to the older run: {note!r}"
    outcome = second.outcome({"trainer's clock a day wrong": 1}, problem)
    outcome.violations += first.outcome({}).violations
    return outcome


SCENARIOS = [
    Scenario(
        name="disk full in the export",
        kind="disk full",
        run=partial(_full_disk, "staging", "prepare_work", "export"),
        alone=True,
    ),
    Scenario(
        name="disk full in a download",
        kind="disk full",
        run=partial(_full_disk, "tmp", "upload", "register"),
        alone=True,
    ),
    Scenario(name="memory limit in the export", kind="memory limit", run=_memory),
    Scenario(name="trainer's clock a day wrong", kind="trainer's clock a day wrong", run=_clock),
]
