"""Staging in a folder that every worker of the release sees: on one machine, or on storage that they share."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from airflow_onnx.storage.staging_base import Send, Staging, is_work_folder
from onnx_release.errors import Refused, Transient

if TYPE_CHECKING:
    from airflow_onnx.storage.s3 import Folder
    from onnx_release.records import FileDigest, OnnxArtifact


class FolderStaging(Staging):
    """The artifact is written where the next task reads it, and moved once: to its final place."""

    @property
    def folder(self) -> Path:
        """The folder that the ``file://`` URI names; raises `Refused` when it names none."""
        parts = urlsplit(self.uri)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise Refused(
                f"staging folder {self.uri!r:.200}",
                "is no file:// URI with an absolute path",
                "Set [onnx_release] staging_uri to s3://bucket/prefix, or to a folder that every worker sees.",
            )
        return Path(unquote(parts.path))

    def prepare(self, keep_s: float) -> None:
        """Make an empty-or-existing work folder, and sweep old siblings."""
        folder = self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder.touch()
            for sibling in folder.parent.iterdir():
                if sibling != folder and _is_left_over(sibling, keep_s):
                    shutil.rmtree(sibling, ignore_errors=True)
        except OSError as error:
            raise Transient(
                f"staging folder {folder}", f"cannot be used: {error}", "Check its disk and its rights."
            ) from error

    def out(self, name: str, scratch: Path) -> Path:
        """Return the place itself: the export's last step is a rename."""
        return self.folder / name

    def keep(self, name: str, artifact: OnnxArtifact, written: Path) -> OnnxArtifact:
        """Say where it is."""
        return artifact.replace(uri=f"{self.uri}/{name}")

    @contextmanager
    def local(self, artifact: OnnxArtifact) -> Iterator[tuple[Path, OnnxArtifact]]:
        """Yield the staged folder, and the record as it is."""
        if not self.folder.is_dir():
            raise Refused(
                f"staged artifact {self.uri}",
                "is not there (swept away, or staged on a disk that this worker does not see)",
                "Clear 'export' with its downstream tasks; for workers on several hosts set [onnx_release] staging_uri "
                "to s3://bucket/prefix, or to storage that they share.",
            )
        yield self.folder, artifact

    @contextmanager
    def sender(self, artifact: OnnxArtifact, target: Folder) -> Iterator[Send]:
        """Yield what puts files of this folder, once all of them are what was judged."""
        from onnx_release.artifact.digests import Digests, verify_folder

        with self.local(artifact) as (folder, _):
            verify_folder(folder, artifact.files, Digests.known(artifact))
            yield putting(target, folder)

    def remove(self) -> None:
        """Delete the work folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def putting(target: Folder, folder: Path) -> Send:
    """Return what puts files of a local folder into the target."""
    from airflow_onnx.storage import s3

    def send(file: FileDigest, metadata: dict[str, str]) -> bool:
        if s3.holds(target, file, partial(s3.expected_etag, target, folder, file)):
            return False
        s3.put(target, folder, file, metadata)
        return True

    return send


def _is_left_over(folder: Path, keep_s: float) -> bool:
    ours = is_work_folder(folder.name) and folder.is_dir() and not folder.is_symlink()
    return ours and time.time() - folder.stat().st_mtime > keep_s
