"""Files of a released version in the store, hashed while they are downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from airflow_onnx.errors import StorageRefused
from airflow_onnx.storage import s3
from airflow_onnx.storage.s3_errors import store_errors
from onnx_release.errors import Transient
from onnx_release.limits import REPORTS
from onnx_release.records import FileDigest

_MISSING = ("no_object", "not_found")
_EXTRA_MAX = 20
# In place of a sha256.
_UNREAD = "unread"


def download(folder: s3.S3Folder, sizes: dict[str, int], files: Sequence[FileDigest], target: Path) -> list[FileDigest]:
    """Download the files of a record, and return the digests of the folder in the store. A difference raises nothing.

    An object of another size than the recorded one is not downloaded: it may be of any size. The same holds for an
    object that the record does not have.

    :param sizes: the size of every object of the folder.
    :param target: an empty folder.
    :raises Transient: if the store does not answer, or two downloads of an object differ.
    """
    found = [one for file in files if (one := _found(folder, file, sizes.get(file.path), target))]
    known = {file.path for file in files} | REPORTS
    extra = sorted(sizes.keys() - known)[:_EXTRA_MAX]
    return found + [FileDigest(path=path, sha256=_UNREAD, size_bytes=sizes[path]) for path in extra]


def outside(files: Sequence[FileDigest]) -> Iterator[str]:
    """Yield the paths that leave their folder. The report is read before it is verified."""
    for file in files:
        parts = PurePosixPath(file.path).parts
        if not parts or file.path.startswith("/") or ".." in parts or "\0" in file.path:
            yield file.path


def _found(folder: s3.S3Folder, file: FileDigest, size: int | None, target: Path) -> FileDigest | None:
    if size is None:
        return None
    if size != file.size_bytes:
        return FileDigest(path=file.path, sha256=_UNREAD, size_bytes=size)
    first = fetch(folder, file.path, file.size_bytes, target)
    if first is None or first == file:
        return first
    # The bytes may have been damaged on their way.
    second = fetch(folder, file.path, file.size_bytes, target)
    if second not in (first, file):
        raise Transient(
            f"The object {folder.uri}/{file.path}",
            "gave other bytes in a second download",
            "Airflow tries again. If that does not help, check the network.",
        )
    return second


def fetch(folder: s3.S3Folder, path: str, size_bytes: int, target: Path) -> FileDigest | None:
    """Download one object and return the digest of its bytes; None for an object that was deleted.

    :param size_bytes: the size by the listing. Of an object that has grown since, little more is read.
    """
    local, digest, size = target / path, hashlib.sha256(), 0
    local.parent.mkdir(parents=True, exist_ok=True)
    try:
        with store_errors(folder, f"The object '{path}'"), local.open("wb") as written, ThreadPoolExecutor(1) as hasher:
            body = folder.hook.get_conn().get_object(Bucket=folder.bucket, Key=folder.key(path))["Body"]
            hashed: Future[None] | None = None
            for chunk in body.iter_chunks(s3.READ_CHUNK_BYTES):
                # One chunk is hashed while the next one arrives.
                if hashed is not None:
                    hashed.result()
                hashed = hasher.submit(digest.update, chunk)
                written.write(chunk)
                size += len(chunk)
                if size > size_bytes:
                    break
    except StorageRefused as refusal:
        if refusal.code in _MISSING:
            return None
        raise
    return FileDigest(path=path, sha256=digest.hexdigest(), size_bytes=size)
