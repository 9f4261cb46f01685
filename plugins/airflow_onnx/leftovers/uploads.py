"""Uploads in parts that were begun and not ended. Their parts take space, and no listing of objects has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from airflow_onnx.errors import StorageRefused
from airflow_onnx.leftovers.findings import Kind, Leftover
from airflow_onnx.leftovers.release_objects import ARTIFACT, CHECK
from airflow_onnx.storage import stored_objects
from airflow_onnx.storage.s3 import S3Folder
from onnx_release.errors import Transient

STAGED = re.compile(r"[0-9a-f]{24}/.+")


@dataclass(kw_only=True)
class Uploads:
    """The search for old uploads in the folder of the releases and in the staging folder.

    :param folders: each folder with the forms of the paths that a release writes there.
    """

    folders: Sequence[tuple[S3Folder, Sequence[re.Pattern[str]]]]
    grace_s: float
    notes: list[str] = field(default_factory=list)

    def find(self) -> Iterator[Leftover]:
        """Yield the uploads that were begun before the grace period."""
        for folder, forms in self.folders:
            try:
                found = list(stored_objects.uploads(folder))
            except (StorageRefused, Transient) as failure:
                # Some stores lack the request, and some accounts the right. Nothing else depends on it.
                self.notes.append(f"uploads in parts are left out: {failure}")
                continue
            for one in found:
                if one.age_s >= self.grace_s and any(form.fullmatch(one.path) for form in forms):
                    yield Leftover(
                        kind=Kind.UPLOAD,
                        place=f"s3://{folder.bucket}/{folder.key(one.path)}",
                        age_s=one.age_s,
                        objects=1,
                        reason="it was begun and not ended",
                        upload_id=one.upload_id,
                    )

    def remove(self, leftover: Leftover) -> str:
        """Abort an upload."""
        bucket, _, key = leftover.place.removeprefix("s3://").partition("/")
        folder = next(one for one, _ in self.folders if one.bucket == bucket and key.startswith(one.prefix))
        stored_objects.abort(replace(folder, prefix=""), key, leftover.upload_id)
        return ""


def of_releases(folder: S3Folder) -> tuple[S3Folder, Sequence[re.Pattern[str]]]:
    """Return the folder of the releases with the forms of its paths."""
    return folder, (ARTIFACT, CHECK)
