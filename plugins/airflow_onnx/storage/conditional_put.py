"""Put of a file with its SHA-256 checksum, and on the condition that no object is there, in stores that have both.

No store is recognized by its name. A store that refuses one of these headers gets this and the next files without them.
A store that ignores them stays without effect: the object is then verified by its ETag, or read back.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_release.records import FileDigest

if TYPE_CHECKING:
    from airflow_onnx.storage.s3 import S3Folder

log = logging.getLogger(__name__)

# Answers of S3 servers to a header that they do not have.
_UNKNOWN_HEADER = {"501", "InvalidArgument", "InvalidRequest", "MalformedXML", "NotImplemented", "XNotImplemented"}
# By the address of the store, for the life of this process.
_refused: set[str] = set()
_returned_sha256: set[str] = set()


def send(folder: S3Folder, path: Path, file: FileDigest, headers: dict[str, Any], *, absent: bool) -> None:
    """Put a file as one object, in parts if it is large.

    :param absent: put it only if no object is there. A file in parts is put in any case: boto3 has no such condition.
    :raises ClientError: ``PreconditionFailed`` if an object is there; likewise boto3's other errors.
    """
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import ClientError

    store = folder.hook.get_conn().meta.endpoint_url
    more = {} if store in _refused else _checksum(folder, file, store)
    absent = absent and not is_in_parts(folder, file) and store not in _refused
    try:
        _send(folder, path, file, headers | more, absent=absent)
    except (ClientError, S3UploadFailedError) as error:
        answer: Any = error if isinstance(error, ClientError) else error.__context__
        code = answer.response.get("Error", {}).get("Code") if isinstance(answer, ClientError) else None
        if code not in _UNKNOWN_HEADER or not (more or absent):
            raise
        log.warning("The store refuses a checksum or a condition (%s). The file is put without them.", code)
        _refused.add(store)
        _send(folder, path, file, headers, absent=False)


def head(folder: S3Folder, path: str) -> dict[str, Any]:
    """Return the answer to a HEAD request, with the checksum if the store has one."""
    client = folder.hook.get_conn()
    found: dict[str, Any] = client.head_object(Bucket=folder.bucket, Key=folder.key(path), ChecksumMode="ENABLED")
    if "ChecksumSHA256" in found:
        _returned_sha256.add(client.meta.endpoint_url)
    return found


def sha256_of(found: dict[str, Any], folder: S3Folder, path: Path, file: FileDigest) -> bool | None:
    """Return True if the store's checksum is that of the file, None if the store has none.

    :param found: the answer to a HEAD request.
    :param path: the local file. It is read only if the object was put in parts.
    """
    given = found.get("ChecksumSHA256")
    if not given:
        return None
    if not is_in_parts(folder, file):
        return bool(given == _base64(file.sha256))
    # Some stores add the number of parts.
    return bool(given.partition("-")[0] == _parts_sha256(folder, path, file))


def _send(folder: S3Folder, path: Path, file: FileDigest, headers: dict[str, Any], *, absent: bool) -> None:
    client = folder.hook.get_conn()
    if absent:
        with path.open("rb") as body:
            client.put_object(Bucket=folder.bucket, Key=folder.key(file.path), Body=body, IfNoneMatch="*", **headers)
        return
    client.upload_file(
        str(path), folder.bucket, folder.key(file.path), ExtraArgs=headers, Config=folder.hook.transfer_config
    )


def _checksum(folder: S3Folder, file: FileDigest, store: str) -> dict[str, str]:
    """Return the arguments of a checksum. For parts boto3 computes it, so only where the store has returned one."""
    if not is_in_parts(folder, file):
        return {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": _base64(file.sha256)}
    return {"ChecksumAlgorithm": "SHA256"} if store in _returned_sha256 else {}


def is_in_parts(folder: S3Folder, file: FileDigest) -> bool:
    """Return True for a file that is put in parts."""
    return bool(file.size_bytes >= folder.hook.transfer_config.multipart_threshold)


def part_bytes(folder: S3Folder, file: FileDigest) -> int:
    """Return the size in bytes of the parts in which a large file is put."""
    from s3transfer.utils import ChunksizeAdjuster  # type: ignore[import-untyped]

    config = folder.hook.transfer_config
    return int(ChunksizeAdjuster().adjust_chunksize(config.multipart_chunksize, file.size_bytes))


def _parts_sha256(folder: S3Folder, path: Path, file: FileDigest) -> str:
    """Return the SHA-256 over the SHA-256s of the parts, as S3 computes it."""
    size, digests = part_bytes(folder, file), []
    with path.open("rb") as body:
        while part := body.read(size):
            digests.append(hashlib.sha256(part).digest())
    return base64.b64encode(hashlib.sha256(b"".join(digests)).digest()).decode()


def _base64(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()
