"""Staging in a folder that all workers of the release share: on one host, or on shared storage."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from airflow_onnx.errors import StorageRefused
from airflow_onnx.storage import part_upload
from airflow_onnx.storage.staging_base import Staging, is_work_folder, put_folder
from onnx_release.errors import Transient

if TYPE_CHECKING:
    from airflow_onnx.storage.s3 import S3Folder
    from onnx_release.records import FileDigest, OnnxArtifact


class FolderStaging(Staging):
    """Staging in a shared folder. The export writes the artifact there, and the upload reads it from there."""

    @property
    def folder(self) -> Path:
        """The folder of the ``file://`` URI; `StorageRefused` for another form of URI."""
        parts = urlsplit(self.uri)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise StorageRefused(
                f"The staging folder {self.uri!r:.200}",
                "is not a file:// URI with an absolute path",
                "Set [onnx_release] staging_uri to s3://bucket/prefix, or to a folder that all workers share.",
                code="staging_uri",
            )
        return Path(unquote(parts.path))

    def prepare(self, keep_s: float) -> None:
        """Make the work folder if it is missing, and delete old ones."""
        folder = self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder.touch()
            # On a network file system this is the server's time. Another host's clock has no part in the ages.
            now_s = folder.stat().st_mtime
            for old in old_work_folders(folder.parent, keep_s, now_s):
                if old.path != folder:
                    shutil.rmtree(old.path, ignore_errors=True)
        except OSError as error:
            raise Transient(
                f"The staging folder {self.uri}",
                f"cannot be used: {error.strerror or type(error).__name__}",
                "Check its disk and its permissions.",
            ) from error

    def output_folder(self, name: str, scratch: Path) -> Path:
        """Return the staged folder itself: the export ends with a rename to it."""
        return self.folder / name

    def stage(self, name: str, artifact: OnnxArtifact, written: Path) -> OnnxArtifact:
        """Return the record with the URI of the folder."""
        return artifact.replace(staging_uri=f"{self.uri}/{name}")

    @contextmanager
    def local_folder(self, artifact: OnnxArtifact) -> Iterator[Path]:
        """Yield the staged folder. The core verifies its bytes in each step."""
        if not self.folder.is_dir():
            raise StorageRefused(
                f"The staged artifact {self.uri}",
                "is missing: it was deleted, or its disk is not shared with this worker",
                "Clear the task 'export' with its downstream tasks. For workers on several hosts set [onnx_release] "
                "staging_uri to s3://bucket/prefix, or to shared storage.",
                code="not_staged",
            )
        yield self.folder

    def send(
        self, artifact: OnnxArtifact, target: S3Folder, metadata: dict[str, str]
    ) -> Iterator[tuple[FileDigest, bool]]:
        """Put the files. Those in parts come first, and are verified as they are read; all others before any is put."""
        from onnx_release.artifact.digests import describe_folder, require_same_files

        with self.local_folder(artifact) as folder:
            in_parts = [file for file in artifact.files if part_upload.is_in_parts(target, file)]
            found = describe_folder(folder, in_parts)
            require_same_files(f"The artifact folder '{folder.name}'", found, artifact.files)
            others = [file for file in artifact.files if file not in in_parts]
            yield from put_folder(folder, (*in_parts, *others), target, metadata)

    def remove(self) -> None:
        """Delete the work folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class OldFolder(NamedTuple):
    """A work folder on a disk, and its age in s."""

    path: Path
    age_s: float


def old_work_folders(root: Path, keep_s: float, now_s: float) -> Iterator[OldFolder]:
    """Yield the work folders that are older than `keep_s`.

    :param now_s: the time in s since 1970 by the clock of the file system.
    """
    for path in sorted(root.iterdir()):
        if is_work_folder(path.name) and path.is_dir() and not path.is_symlink():
            age_s = now_s - path.stat().st_mtime
            if age_s > keep_s:
                yield OldFolder(path, age_s)
