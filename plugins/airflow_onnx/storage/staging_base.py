"""What each kind of staging can do."""

from __future__ import annotations

import abc
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_onnx.storage.s3 import Folder
    from onnx_release.records import FileDigest, OnnxArtifact

Send = Callable[["FileDigest", dict[str, str]], bool]
"""Puts one file of the artifact into the target folder, with this metadata; False when it was there already."""


class Staging(abc.ABC):
    """A work folder, or an artifact in one. Nothing is named by a record before all of it is there and verified."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @abc.abstractmethod
    def prepare(self, keep_s: float) -> None:
        """Make the work folder usable, and sweep its siblings that nothing has touched for `keep_s` seconds."""

    @abc.abstractmethod
    def out(self, name: str, scratch: Path) -> Path:
        """Return the folder on this disk to write the artifact `name` to; `scratch` ends with the task."""

    @abc.abstractmethod
    def keep(self, name: str, artifact: OnnxArtifact, written: Path) -> OnnxArtifact:
        """Stage what was written to `out`, and return its record with the place in it."""

    @abc.abstractmethod
    def local(self, artifact: OnnxArtifact) -> AbstractContextManager[tuple[Path, OnnxArtifact]]:
        """Return a context in which the artifact at this URI is a folder on this disk, to be read only.

        It comes with its record, whose stamps are those of the files of that folder.

        :raises Refused: when it is not there.
        """

    @abc.abstractmethod
    def sender(self, artifact: OnnxArtifact, target: Folder) -> AbstractContextManager[Send]:
        """Return a context that yields what sends the artifact's files to their final place, and verifies each there.

        :raises Refused: when what is staged is not there, or not what was judged.
        """

    @abc.abstractmethod
    def remove(self) -> None:
        """Delete the work folder; one that is gone already is no error."""


def is_work_folder(name: str) -> bool:
    """Tell whether `work_uri` makes such names: the root may be a folder that others use too."""
    return re.fullmatch(r"[0-9a-f]{24}", name) is not None
