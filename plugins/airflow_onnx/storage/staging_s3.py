"""Staging in an object store, for workers that share no disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_onnx import validation
from airflow_onnx.deployment import settings
from airflow_onnx.storage import s3, worker_cache
from airflow_onnx.storage.staging_base import Send, Staging, is_work_folder
from airflow_onnx.storage.staging_folder import putting
from onnx_release.errors import Refused

if TYPE_CHECKING:
    from onnx_release.records import FileDigest, OnnxArtifact

RERUN = "export"
_AGAIN = f"Clear the task '{RERUN}' with its downstream tasks."


class StoreStaging(Staging):
    """The artifact is put once, fetched by each worker that reads it, and copied inside the store to its final place.

    It lies below its own sha256: a second try, or a try that Airflow gave up and that still goes on, puts the same
    objects again or others elsewhere, and what a record names never changes under it.
    """

    @property
    def folder(self) -> s3.Folder:
        """The folder in the store, through the deployment's connection."""
        return self._folder(self.uri)

    def _folder(self, uri: str) -> s3.Folder:
        validation.bucket(uri.removeprefix("s3://").partition("/")[0])
        return s3.folder_at(settings.staging_conn_id(), uri, rerun=RERUN)

    def prepare(self, keep_s: float) -> None:
        """Look whether the bucket is there, and sweep old siblings; a folder in a store needs no making."""
        s3.require_bucket(self.folder)
        root_uri, _, own = self.uri.rpartition("/")
        root = self._folder(root_uri)
        newest: dict[str, float] = {}
        for path, item in s3.listing(root).items():
            name = path.partition("/")[0]
            newest[path] = item["LastModified"].timestamp()
            newest[name] = max(newest.get(name, 0.0), newest[path])
        old = {name for name, at in newest.items() if is_work_folder(name) and time.time() - at > keep_s} - {own}
        s3.remove(root, [path for path in newest if "/" in path and path.partition("/")[0] in old])

    def out(self, name: str, scratch: Path) -> Path:
        """Return a folder of the task's own."""
        return scratch / name

    def keep(self, name: str, artifact: OnnxArtifact, written: Path) -> OnnxArtifact:
        """Put every file and verify it."""
        folder = self._folder(f"{self.uri}/{name}/{artifact.sha256}")
        metadata = {"artifact-sha256": artifact.sha256}
        staged = {file.path: s3.put(folder, written, file, metadata) for file in artifact.files}
        return artifact.replace(uri=folder.uri, staged=staged)

    @contextmanager
    def local(self, artifact: OnnxArtifact) -> Iterator[tuple[Path, OnnxArtifact]]:
        """Yield a copy from this worker's cache, or fetched into it; its bytes were just read."""
        from onnx_release.artifact.cache import Wanted
        from onnx_release.artifact.digests import Digests, verify_folder

        digests = Digests()

        def fill(target: Path) -> None:
            self._require_staged(artifact)
            s3.fetch(self.folder, artifact.files, target)
            verify_folder(target, artifact.files, digests)

        with worker_cache.cached(
            Wanted(name=f"artifact {self.uri}", fill=fill, sha256=artifact.sha256, digests=digests)
        ) as entry:
            yield entry.folder, artifact.replace(stamps=entry.stamps)

    def _require_staged(self, artifact: OnnxArtifact) -> None:
        found = s3.sizes(self.folder)
        if missing := [file.path for file in artifact.files if found.get(file.path) != file.size_bytes]:
            raise Refused(f"staged artifact {self.uri}", f"lacks {', '.join(missing)} as it was staged", _AGAIN)

    @contextmanager
    def sender(self, artifact: OnnxArtifact, target: s3.Folder) -> Iterator[Send]:
        """Yield what lets the store copy: exactly the objects that were verified, or nothing.

        Where the target is another store, the artifact is fetched and put.
        """
        source = self.folder
        if not s3.same_store(source, target):
            with self.local(artifact) as (folder, _):
                yield putting(target, folder)
            return

        def send(file: FileDigest, metadata: dict[str, str]) -> bool:
            staged = artifact.staged.get(file.path)
            if staged is None:
                raise Refused(f"the record of {source.uri}/{file.path}", "says nothing of how it was staged", _AGAIN)
            if s3.holds(target, file, lambda: staged):
                return False
            s3.copy(source, target, file, staged, metadata)
            return True

        yield send

    def remove(self) -> None:
        """Delete every object of the work folder."""
        if not is_work_folder(self.uri.rpartition("/")[2]):
            raise Refused(f"work folder {self.uri}", "is none that this package makes", "Nothing was removed.")
        folder = self.folder
        s3.remove(folder, sorted(s3.sizes(folder)))
