"""Folders and locks on the disk of the workers: work folders, scratch folders, and the measuring lock."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from onnx_release.scratch import PREFIX
from soak.airflow_state import ALIVE, AirflowState


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """The places of one worker. None for a place that is not checked.

    :param staging: the folder with the work folder of each DAG run.
    :param scratch: the folder for temporary files of the tasks.
    :param lock: the file that a task locks while it measures.
    """

    staging: Path | None = None
    scratch: Path | None = None
    lock: Path | None = None

    def leftovers(self, airflow: AirflowState) -> Iterator[str]:
        """Yield a sentence for each folder and lock that belongs to no release in progress."""
        yield from self._work_folders(airflow)
        if self.scratch:
            for folder in sorted(self.scratch.glob(f"{PREFIX}*")):
                if not _is_locked(folder / "owner.lock"):
                    yield f"The scratch folder {folder} belongs to a process that has ended."
        if self.lock and not airflow.alive() and _is_locked(self.lock):
            yield f"The measuring lock {self.lock} is held, and no release is in progress."

    def _work_folders(self, airflow: AirflowState) -> Iterator[str]:
        """Yield the work folders that no DAG run needs. A failed one keeps its folder for a later clear."""
        if self.staging is None or not self.staging.is_dir():
            return
        kept = {
            hashlib.sha256(f"{dag_id}\0{run_id}".encode()).hexdigest()[:24]
            for (dag_id, run_id), state in airflow.dag_runs.items()
            if state == "failed" or state in ALIVE
        }
        for folder in sorted(self.staging.iterdir()):
            if folder.is_dir() and folder.name not in kept:
                yield f"The work folder {folder} belongs to no DAG run that needs it."


def _is_locked(path: Path) -> bool:
    """Return True if another process has the lock of the file."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False
