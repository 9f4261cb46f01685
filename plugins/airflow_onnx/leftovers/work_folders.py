"""Work folders of releases that ended long ago, and temporary folders of processes that were killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from airflow_onnx.leftovers.findings import Kind, Leftover
from airflow_onnx.storage import s3, stored_objects
from airflow_onnx.storage.s3 import S3Folder
from airflow_onnx.storage.staging_base import is_work_folder
from airflow_onnx.storage.staging_folder import FolderStaging, old_work_folders
from airflow_onnx.storage.staging_s3 import old_work_folders as old_stored_folders
from airflow_onnx.storage.staging_s3 import staging_folder
from onnx_release import scratch

# A folder on a disk has the time of a host. With a larger difference no age on this host counts.
CLOCK_MAX_S = 3600.0


@dataclass(kw_only=True)
class WorkFolders:
    """The search for old work folders in the staging folder of the deployment.

    A failed release keeps its work folder, because a cleared task reads it.

    :param store: a folder in the store, whose clock checks the clock of this host.
    """

    staging_uri: str
    store: S3Folder
    keep_s: float
    notes: list[str] = field(default_factory=list)

    def find(self) -> Iterator[Leftover]:
        """Yield the work folders in which nothing changed for `keep_s`."""
        reason = "no task has written to it for a week or more"
        if urlsplit(self.staging_uri).scheme == "s3":
            for name, old in old_stored_folders(staging_folder(self.staging_uri), self.keep_s):
                yield Leftover(
                    kind=Kind.STAGING, place=f"{self.staging_uri}/{name}", age_s=old.age_s, size_bytes=old.size_bytes,
                    objects=len(old.paths), reason=reason,
                )  # fmt: skip
            return
        root = FolderStaging(self.staging_uri).folder
        wrong_s = abs(time.time() - stored_objects.time_now(self.store).timestamp())
        if wrong_s > CLOCK_MAX_S:
            self.notes.append(f"{root} is left out: the clock of this host differs from the store's by {wrong_s:.0f} s")
        elif root.is_dir():
            for folder in old_work_folders(root, self.keep_s, time.time()):
                files, size_bytes = _contents(folder.path)
                yield Leftover(
                    kind=Kind.STAGING, place=folder.path.as_uri(), age_s=folder.age_s, size_bytes=size_bytes,
                    objects=files, reason=reason,
                )  # fmt: skip

    def remove(self, leftover: Leftover) -> str:
        """Remove a work folder, unless a task has written to it. Return the reason if it stays."""
        root_uri, _, name = leftover.place.rpartition("/")
        if not is_work_folder(name):
            return "it is not a work folder"
        if urlsplit(leftover.place).scheme == "s3":
            root = staging_folder(root_uri)
            at = replace(root, prefix=f"{root.prefix}{name}/")
            present = stored_objects.folder_now(at)
            if present.age_s <= self.keep_s:
                return "a task has written to it"
            s3.remove(at, present.paths)
            return ""
        staging = FolderStaging(leftover.place)
        if not any(
            old.path == staging.folder for old in old_work_folders(staging.folder.parent, self.keep_s, time.time())
        ):
            return "a task has written to it"
        staging.remove()
        return ""


class Scratch:
    """The search for temporary folders of processes on this host that have ended. A lock shows the others."""

    def find(self) -> Iterator[Leftover]:
        """Yield the folders without a living process."""
        for folder in scratch.abandoned():
            files, size_bytes = _contents(folder)
            yield Leftover(
                kind=Kind.SCRATCH, place=folder.as_uri(), size_bytes=size_bytes, objects=files,
                reason="its process has ended",
            )  # fmt: skip

    def remove(self, leftover: Leftover) -> str:
        """Remove a folder. Return the reason if it stays."""
        scratch.remove_if_abandoned(Path(urlsplit(leftover.place).path))
        return ""


def _contents(folder: Path) -> tuple[int, int]:
    """Return the number of files below a folder and their size. Another process may remove them meanwhile."""
    sizes = []
    for path in folder.rglob("*"):
        try:
            sizes += [path.lstat().st_size] if path.is_file() else []
        except OSError:
            continue
    return len(sizes), sum(sizes)
