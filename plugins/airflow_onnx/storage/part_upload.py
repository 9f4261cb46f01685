"""Upload of a large file in parts. Each part is read once, and is hashed while others are sent.

The parts are read in order, so the bytes that are sent also give the SHA-256 of the file. The store makes the object of
them only if it is that of the record.

A part has one digest: its MD5, from which most stores make the ETag. It is the SHA-256 where the ETag has another
origin and the store returns SHA-256 checksums.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_onnx.storage.conditional_put import base64_of
from onnx_release.records import FileDigest

if TYPE_CHECKING:
    from airflow_onnx.storage.s3 import S3Folder

# Each sender has one part in memory.
_SENDERS = 4
# Bucket URIs where the SHA-256 of an object proved its bytes and the ETag did not, for the life of this process.
_other_etags: set[tuple[str, str]] = set()


class ObjectDigests(NamedTuple):
    """Digests by which a store can prove an object. None: not computed.

    `etag` is that of a store which computes it from the bytes. `sha256` has S3's form, without the number of parts.
    """

    etag: str | None
    sha256: str | None


def is_in_parts(folder: S3Folder, file: FileDigest) -> bool:
    """Return True for a file that is put in parts."""
    return bool(file.size_bytes >= folder.hook.transfer_config.multipart_threshold)


def part_bytes(folder: S3Folder, file: FileDigest) -> int:
    """Return the size in bytes of the parts in which a large file is put."""
    from s3transfer.utils import ChunksizeAdjuster  # type: ignore[import-untyped]

    config = folder.hook.transfer_config
    return int(ChunksizeAdjuster().adjust_chunksize(config.multipart_chunksize, file.size_bytes))


def expect_other_etags(folder: S3Folder) -> None:
    """Send the parts of this bucket's next files with their SHA-256."""
    _other_etags.add(_bucket(folder))


def send(folder: S3Folder, path: Path, file: FileDigest, headers: dict[str, Any]) -> ObjectDigests:
    """Put a file in parts and return the digests of the object.

    :raises ArtifactRefused: ``changed_files`` if the file has other bytes than its record. No object is made.
    :raises ClientError: if the store refuses a part; likewise boto3's other errors. The upload is aborted.
    """
    from onnx_release.artifact.digests import require_same_files

    client, size = folder.hook.get_conn(), part_bytes(folder, file)
    # The same handler is registered once.
    client.meta.events.register("before-sign.s3.UploadPart", _sign_the_digest, unique_id="onnx-release-parts")
    by_sha256 = _bucket(folder) in _other_etags
    place = {"Bucket": folder.bucket, "Key": folder.key(file.path)}
    arguments = headers | ({"ChecksumAlgorithm": "SHA256"} if by_sha256 else {})
    numbers, whole, reading = itertools.count(1), hashlib.sha256(), Lock()
    with _begun(client, place | arguments, place) as upload, path.open("rb") as body:

        def send_next(_: int) -> tuple[bytes, dict[str, Any]]:
            with reading:
                number, content = next(numbers), body.read(size)
                whole.update(content)
            if by_sha256:
                digest = hashlib.sha256(content).digest()
                checksum = {"ChecksumSHA256": base64_of(digest)}
                more = {"ChecksumAlgorithm": "SHA256", **checksum}
            else:
                digest = hashlib.md5(content, usedforsecurity=False).digest()
                checksum, more = {}, {"ContentMD5": base64_of(digest)}
            answer = client.upload_part(**upload, PartNumber=number, Body=content, **more)
            return digest, {"PartNumber": number, "ETag": answer["ETag"], **checksum}

        with ThreadPoolExecutor(_SENDERS) as pool:
            parts = -(-file.size_bytes // size)
            sent = sorted(pool.map(send_next, range(parts)), key=lambda one: one[1]["PartNumber"])
        found = FileDigest(path=file.path, sha256=whole.hexdigest(), size_bytes=os.fstat(body.fileno()).st_size)
        require_same_files(f"The artifact folder '{path.parent.name}'", [found], [file])
        client.complete_multipart_upload(**upload, MultipartUpload={"Parts": [part for _, part in sent]})
    joined = b"".join(digest for digest, _ in sent)
    if by_sha256:
        return ObjectDigests(None, base64_of(hashlib.sha256(joined).digest()))
    return ObjectDigests(f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(sent)}", None)


@contextmanager
def _begun(client: Any, arguments: dict[str, Any], place: dict[str, str]) -> Iterator[dict[str, str]]:
    """Begin an upload in parts, and yield the arguments of its requests. Abort it if the body fails."""
    from botocore.exceptions import BotoCoreError, ClientError

    upload = place | {"UploadId": client.create_multipart_upload(**arguments)["UploadId"]}
    try:
        yield upload
    except BaseException:
        with suppress(BotoCoreError, ClientError):
            client.abort_multipart_upload(**upload)
        raise


def _sign_the_digest(request: Any, **_: object) -> None:
    """Sign the headers of a part, one of which is its digest, and not its bytes a second time.

    botocore does so over TLS. The connection's own `payload_signing_enabled` is kept.
    """
    from botocore.config import Config

    config = request.context["client_config"]
    s3 = {"payload_signing_enabled": False} | (config.s3 or {})
    request.context["client_config"] = config.merge(Config(s3=s3))


def _bucket(folder: S3Folder) -> tuple[str, str]:
    return folder.hook.get_conn().meta.endpoint_url, folder.bucket
