"""Put of a small file with its SHA-256 checksum, and if no object is there, in stores that have both.

No store is recognized by its name. A store that refuses one of these headers gets this and the next files without them.
A store that ignores them stays without effect: the object is then verified by its ETag, or read back.
"""

from __future__ import annotations

import base64
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


def send(folder: S3Folder, path: Path, file: FileDigest, headers: dict[str, Any], *, absent: bool) -> None:
    """Put a small file in one request.

    :param absent: put it only if no object is there.
    :raises ClientError: ``PreconditionFailed`` if an object is there; likewise boto3's other errors.
    """
    from botocore.exceptions import ClientError

    client = folder.hook.get_conn()
    store = client.meta.endpoint_url
    more = {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": base64_of(bytes.fromhex(file.sha256))}
    more |= {"IfNoneMatch": "*"} if absent else {}

    def put(headers: dict[str, Any]) -> None:
        with path.open("rb") as body:
            client.put_object(Bucket=folder.bucket, Key=folder.key(file.path), Body=body, **headers)

    if store in _refused:
        return put(headers)
    try:
        return put(headers | more)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") not in _UNKNOWN_HEADER:
            raise
    log.warning("The store refuses a checksum or a condition. The file is put without them.")
    _refused.add(store)
    return put(headers)


def head(folder: S3Folder, path: str) -> dict[str, Any]:
    """Return the answer to a HEAD request, with the checksum if the store has one."""
    client = folder.hook.get_conn()
    found: dict[str, Any] = client.head_object(Bucket=folder.bucket, Key=folder.key(path), ChecksumMode="ENABLED")
    return found


def base64_of(digest: bytes) -> str:
    """Return a digest as S3's headers have it."""
    return base64.b64encode(digest).decode()
