"""Interface of staging: a work folder that passes artifacts from task to task."""

from __future__ import annotations

import abc
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_onnx.errors import StorageRefused
from airflow_onnx.storage import s3

if TYPE_CHECKING:
    from onnx_release.records import FileDigest, OnnxArtifact


class Staging(abc.ABC):
    """A work folder, or an artifact in a work folder.

    A record names a staged artifact only after all its files are complete and verified.

    :param uri: the URI of the work folder or of the artifact.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @abc.abstractmethod
    def prepare(self, keep_s: float) -> None:
        """Make the work folder usable, and delete other work folders that are older than `keep_s` seconds."""

    @abc.abstractmethod
    def output_folder(self, name: str, scratch: Path) -> Path:
        """Return the local folder in which the task writes the artifact `name`.

        :param scratch: a folder that ends with the task.
        """

    @abc.abstractmethod
    def stage(self, name: str, artifact: OnnxArtifact, written: Path) -> OnnxArtifact:
        """Stage the artifact in the folder `written`, and return its record with `staging_uri`.

        The folder may be gone afterwards.
        """

    @abc.abstractmethod
    def local_folder(self, artifact: OnnxArtifact) -> AbstractContextManager[Path]:
        """Return a context with the artifact as a local folder, for reading.

        :raises Refused: if the artifact is missing or was changed.
        """

    @abc.abstractmethod
    def send(
        self, artifact: OnnxArtifact, target: s3.S3Folder, metadata: dict[str, str]
    ) -> Iterator[tuple[FileDigest, bool]]:
        """Bring every file of the artifact to `target` and verify it there.

        Yields each file, with False if the target already had it.

        :param metadata: S3 metadata of each object.
        :raises Refused: if a staged file is missing or was changed.
        """

    @abc.abstractmethod
    def remove(self) -> None:
        """Delete the work folder. A missing folder is not an error."""


def is_work_folder(name: str) -> bool:
    """Return True for a name that `work_folder_uri` makes. The root may contain other folders too."""
    return re.fullmatch(r"[0-9a-f]{24}", name) is not None


def put_folder(
    folder: Path, files: tuple[FileDigest, ...], target: s3.S3Folder, metadata: dict[str, str]
) -> Iterator[tuple[FileDigest, bool]]:
    """Put local files that the target does not have yet. Yields as `Staging.send`."""
    for file in files:
        stored = s3.is_stored(target, file, partial(s3.expected_object, target, folder, file))
        if not stored:
            _put_absent(folder, file, target, metadata)
        yield file, not stored


def _put_absent(folder: Path, file: FileDigest, target: s3.S3Folder, metadata: dict[str, str]) -> None:
    """Put a file that the target lacks. Two releases of the same bytes do not overwrite each other's object."""
    try:
        s3.put(target, folder, file, metadata, absent=True)
    except StorageRefused as refusal:
        if refusal.code != "object_changed":
            raise
        # Another release has put it meanwhile, or an object with other bytes is there.
        if not s3.is_stored(target, file, partial(s3.expected_object, target, folder, file)):
            s3.put(target, folder, file, metadata)
