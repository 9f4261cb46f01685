"""Staging in an S3 store, for workers that share no disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_onnx import validation
from airflow_onnx.deployment import settings
from airflow_onnx.errors import StorageRefused
from airflow_onnx.storage import s3, stored_objects, worker_cache
from airflow_onnx.storage.staging_base import Staging, is_work_folder, put_folder
from airflow_onnx.storage.stored_objects import StoredFolder
from onnx_release.errors import RecordRefused
from onnx_release.records.base import Record

if TYPE_CHECKING:
    from onnx_release.records import FileDigest, OnnxArtifact

log = logging.getLogger(__name__)

RERUN = "export"
_AGAIN = f"Clear the task '{RERUN}' with its downstream tasks."


class StagedObjects(Record):
    """The staged objects of one artifact as they were verified, by path.

    Stored as JSON beside the artifact, for the task that copies it.
    """

    objects: dict[str, s3.VerifiedObject]


class S3Staging(Staging):
    """Staging in a store: put once, fetched by each worker that reads it, copied inside the store to its final place.

    The artifact is below its own sha256. A second try, or a try that Airflow gave up and that still runs, puts the same
    objects again or other objects elsewhere. The objects that a record names never change.
    """

    @property
    def folder(self) -> s3.S3Folder:
        """The folder in the store, through the deployment's connection."""
        return staging_folder(self.uri)

    def prepare(self, keep_s: float) -> None:
        """Check that the bucket exists, and delete old work folders."""
        s3.require_bucket(self.folder)
        root_uri, _, own = self.uri.rpartition("/")
        root = staging_folder(root_uri)
        try:
            for name, old in old_work_folders(root, keep_s):
                if name != own:
                    s3.remove(root, old.paths)
        except StorageRefused as refusal:
            if refusal.code != "no_store_clock":
                raise
            log.warning("Old work folders stay: %s", refusal)

    def output_folder(self, name: str, scratch: Path) -> Path:
        """Return a folder of the task."""
        return scratch / name

    def stage(self, name: str, artifact: OnnxArtifact, written: Path) -> OnnxArtifact:
        """Put every file and verify it. The folder `written` moves to this worker's cache, for the next tasks here."""
        parent = staging_folder(f"{self.uri}/{name}")
        folder = staging_folder(f"{parent.uri}/{artifact.sha256}")
        metadata = {"artifact-sha256": artifact.sha256}
        staged = StagedObjects(objects={file.path: s3.put(folder, written, file, metadata) for file in artifact.files})
        s3.put_text(parent, _objects_file(artifact), json.dumps(staged.to_dict()))
        worker_cache.keep_folder(_name(folder.uri), written, artifact.files)
        return artifact.replace(staging_uri=folder.uri)

    @contextmanager
    def local_folder(self, artifact: OnnxArtifact) -> Iterator[Path]:
        """Yield a copy from this worker's cache, or fetch it. The cache verifies every file."""
        from onnx_release.artifact.cache import CacheRequest

        def fill(target: Path) -> None:
            found = s3.sizes(self.folder)
            missing = [file.path for file in artifact.files if found.get(file.path) != file.size_bytes]
            if missing:
                raise StorageRefused(
                    f"The staged artifact {self.uri}",
                    f"lacks {', '.join(missing)} with the recorded size",
                    _AGAIN,
                    code="not_staged",
                )
            s3.fetch(self.folder, artifact.files, target)

        request = CacheRequest(name=_name(self.uri), fill=fill, sha256=artifact.sha256, files=artifact.files)
        with worker_cache.cached_folder(request) as entry:
            yield entry.folder

    def send(
        self, artifact: OnnxArtifact, target: s3.S3Folder, metadata: dict[str, str]
    ) -> Iterator[tuple[FileDigest, bool]]:
        """Let the store copy exactly the objects that were verified.

        If the target is another store, fetch the artifact and put it.
        """
        source = self.folder
        if not s3.same_store(source, target):
            with self.local_folder(artifact) as folder:
                yield from put_folder(folder, artifact.files, target, metadata)
            return
        objects = self._staged_objects(artifact)
        for file in artifact.files:
            stored = s3.is_stored(target, file, partial(objects.__getitem__, file.path))
            if not stored:
                s3.copy(source, target, file, objects[file.path], metadata)
            yield file, not stored

    def _staged_objects(self, artifact: OnnxArtifact) -> dict[str, s3.VerifiedObject]:
        parent = staging_folder(self.uri.rpartition("/")[0])
        try:
            objects = StagedObjects.from_dict(json.loads(s3.read_text(parent, _objects_file(artifact)))).objects
        except (RecordRefused, ValueError):
            objects = {}
        if missing := [file.path for file in artifact.files if file.path not in objects]:
            raise StorageRefused(
                f"The object {parent.uri}/{_objects_file(artifact)}",
                f"has no entry for {', '.join(missing)}",
                _AGAIN,
                code="staging_record",
            )
        return objects

    def remove(self) -> None:
        """Delete every object of the work folder."""
        if not is_work_folder(self.uri.rpartition("/")[2]):
            raise StorageRefused(
                f"The folder {self.uri}",
                "is not a work folder of a DAG run",
                "Nothing was deleted: check the task's parameter 'work_uri'.",
                code="not_a_work_folder",
            )
        folder = self.folder
        s3.remove(folder, sorted(s3.sizes(folder)))


def old_work_folders(root: s3.S3Folder, keep_s: float) -> Iterator[tuple[str, StoredFolder]]:
    """Yield name and objects of each work folder whose newest object is older than `keep_s` by the store's clock."""
    folders: dict[str, StoredFolder] = {}
    for path, item, now in stored_objects.objects(root):
        name, separator, _ = path.partition("/")
        if separator and is_work_folder(name):
            folders.setdefault(name, StoredFolder.of()).add(path, item, now)
    yield from ((name, one) for name, one in sorted(folders.items()) if one.age_s > keep_s)


def staging_folder(uri: str) -> s3.S3Folder:
    """Return the folder of a URI, through the deployment's connection."""
    validation.validate_bucket(uri.removeprefix("s3://").partition("/")[0])
    return s3.folder_at(settings.staging_conn_id(), uri, rerun=RERUN)


def _name(uri: str) -> str:
    return f"The artifact {uri}"


def _objects_file(artifact: OnnxArtifact) -> str:
    return f"{artifact.sha256}.objects.json"
