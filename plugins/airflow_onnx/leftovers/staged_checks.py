"""Objects of checks of the staging folder, which an ended check left there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from urllib.parse import urlsplit

from airflow_onnx.errors import StorageRefused
from airflow_onnx.leftovers.findings import Kind, Leftover
from airflow_onnx.preflight.store import MARK
from airflow_onnx.storage import s3, stored_objects
from airflow_onnx.storage.s3 import S3Folder
from airflow_onnx.storage.staging_s3 import staging_folder

CHECK = re.compile(rf"{MARK}-[0-9a-f]{{12}}\.txt(\.copy)?")


@dataclass(kw_only=True)
class StagedChecks:
    """The search for them in a staging folder in a store. On a disk, a check leaves nothing that it has closed.

    :param staging_uri: the staging folder of the deployment. Releases with other prefixes check it too.
    """

    staging_uri: str
    grace_s: float
    notes: list[str] = field(default_factory=list)

    @cached_property
    def folder(self) -> S3Folder | None:
        """The folder in the store; None for one on a disk."""
        return staging_folder(self.staging_uri) if urlsplit(self.staging_uri).scheme == "s3" else None

    def find(self) -> Iterator[Leftover]:
        """Yield the objects that are older than the grace period."""
        if self.folder is None:
            return
        begin = replace(self.folder, prefix=self.folder.key(MARK))
        try:
            found = list(stored_objects.objects(begin))
        except StorageRefused as refusal:
            # An account for one prefix of the releases has no right to the folder above it.
            self.notes.append(f"objects of checks are left out: {refusal}")
            return
        for end, item, now in found:
            age_s = (now - item["LastModified"]).total_seconds()
            if age_s >= self.grace_s and CHECK.fullmatch(f"{MARK}{end}"):
                yield Leftover(
                    kind=Kind.STAGED_CHECK,
                    place=f"{self.folder.uri}/{MARK}{end}",
                    age_s=age_s,
                    size_bytes=item["Size"],
                    objects=1,
                    reason="a check did not remove it",
                )

    def remove(self, leftover: Leftover) -> str:
        """Remove an object. No later check uses its name."""
        if self.folder is not None:
            s3.remove(self.folder, [leftover.place.rpartition("/")[2]])
        return ""
