"""Folders in an S3 store, through Airflow's `S3Hook`: put and verify, copy, read, fetch, remove."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow_onnx.errors import StorageRefused
from airflow_onnx.hooks.s3_store import s3_hook
from airflow_onnx.storage import conditional_put, part_upload
from airflow_onnx.storage.object_metadata import content_type
from airflow_onnx.storage.part_upload import ObjectDigests
from airflow_onnx.storage.s3_errors import require_connection, store_errors
from onnx_release.errors import Transient
from onnx_release.records import FileDigest
from onnx_release.records.base import Record

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from boto3.s3.transfer import TransferConfig

log = logging.getLogger(__name__)

# A file of this size or more is put in parts of this size. An upload to the same host takes a sixth longer with boto3's
# own 8 MiB. A larger part costs more when it fails, and gives a file of 100 MB too few parts for several threads.
PART_BYTES = 32 * 2**20
TRANSFER_CONFIG = {"multipart_threshold": PART_BYTES, "multipart_chunksize": PART_BYTES}
READ_CHUNK_BYTES = 1 << 20
# MD5 releases Python's lock once per block, so other threads run in between.
_MD5_BLOCK_BYTES = 1 << 23

# A task has several folders of one connection, and boto3 needs 0.3 s of CPU time for each new client.
_hooks: dict[tuple[str, str], S3Hook] = {}


class VerifiedObject(Record):
    """ETag of an object whose bytes were verified.

    `etag_from_bytes`: the store computes its ETags from the bytes, so two objects with one ETag have the same bytes.
    """

    etag: str
    etag_from_bytes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Folder:
    """A bucket and the key prefix (ending in ``/``) of one folder.

    `rerun` is the task that puts the objects, for messages. It is None for a folder that a release only reads.
    """

    hook: S3Hook = field(repr=False)
    bucket: str
    prefix: str
    rerun: str | None = "upload"

    @property
    def uri(self) -> str:
        """The folder as ``s3://bucket/prefix``, without a trailing slash."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, path: str) -> str:
        """Return the object key of a file in the folder."""
        return self.prefix + path


def folder_at(s3_conn_id: str, uri: str, rerun: str | None = "upload") -> S3Folder:
    """Return the folder ``s3://bucket/prefix``, accessed through an Airflow connection of type `s3store` or `aws`.

    :param rerun: as in `S3Folder`.
    :raises Refused: if the connection does not exist, or its address cannot be used.
    """
    conn = require_connection(s3_conn_id)
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    # With the connection's content, because it can change while a process lives.
    key = s3_conn_id, conn.get_uri()
    if (hook := _hooks.get(key)) is None:
        # A copy: the hook updates this dictionary with the connection's `service_config`.
        hook = _hooks[key] = s3_hook(conn, transfer_config_args=dict(TRANSFER_CONFIG))
    return S3Folder(hook=hook, bucket=bucket, prefix=f"{prefix.strip('/')}/".lstrip("/"), rerun=rerun)


def require_bucket(folder: S3Folder) -> None:
    """Raise `StorageRefused` if the bucket does not exist or the account may not list the folder.

    The right to list may be limited to a prefix. A HEAD request of the bucket would need it for the whole bucket.
    """
    from botocore.exceptions import ClientError

    with store_errors(folder, f"The bucket '{folder.bucket}'"):
        try:
            folder.hook.get_conn().list_objects_v2(Bucket=folder.bucket, Prefix=folder.prefix, MaxKeys=1)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in ("404", "NoSuchBucket"):
                raise
            subject = f"The bucket '{folder.bucket}' (connection '{folder.hook.aws_conn_id}')"
            action = "Create the bucket, or name another one."
            raise StorageRefused(subject, "does not exist", action, code="no_bucket") from error


def require_write_access(folder: S3Folder, path: str = "write-test") -> None:
    """Raise `StorageRefused` if the account may not write below the prefix. No object is written.

    An upload in parts is begun and aborted. The account needs the right to abort for a killed upload too.
    """
    with store_errors(folder, "A test of the write access"):
        client = folder.hook.get_conn()
        place = {"Bucket": folder.bucket, "Key": folder.key(path)}
        begun = client.create_multipart_upload(**place)
        client.abort_multipart_upload(**place, UploadId=begun["UploadId"])


def put(
    folder: S3Folder, local: Path, file: FileDigest, metadata: dict[str, str], *, absent: bool = False
) -> VerifiedObject:
    """Put one file, in parts if it is large, and verify the object. S3 shows the object only when it is complete.

    The store answers with an ETag: the MD5 of the bytes, or the MD5 over the MD5s of the parts. If the ETag differs
    (encryption with own keys, some gateways), the store's SHA-256 counts. Without one the object is read back.

    :param absent: put a file that is not sent in parts only if no object is there, if the store has the condition.
    :raises StorageRefused: ``object_changed`` if an object is there against `absent`.
    :raises Transient: if the object has other bytes.
    """
    path, headers = local / file.path, _headers(file, metadata)
    with store_errors(folder, f"The object '{file.path}'"):
        if part_upload.is_in_parts(folder, file):
            sent = part_upload.send(folder, path, file, headers)
        else:
            conditional_put.send(folder, path, file, headers, absent=absent)
            sha256 = conditional_put.base64_of(bytes.fromhex(file.sha256))
            sent = ObjectDigests(expected_object(folder, local, file).etag, sha256)
        head = conditional_put.head(folder, file.path)
    etag, has_size = head["ETag"].strip('"'), head["ContentLength"] == file.size_bytes
    # Some stores add the number of parts.
    stored_sha256 = head.get("ChecksumSHA256", "").partition("-")[0]
    same_sha256 = stored_sha256 == sent.sha256 if stored_sha256 and sent.sha256 else None
    if has_size and etag == sent.etag and same_sha256 is not False:
        return VerifiedObject(etag=etag, etag_from_bytes=True)
    if has_size and same_sha256:
        part_upload.expect_other_etags(folder)
    else:
        _require_readback(folder, file, etag)
    return VerifiedObject(etag=etag, etag_from_bytes=False)


def copy(
    source: S3Folder, target: S3Folder, file: FileDigest, verified: VerifiedObject, metadata: dict[str, str]
) -> None:
    """Copy an object inside the store, in parts of the same size, and verify the copy.

    :param verified: the source object as it was verified. If the store has another object now, nothing is copied.
    :raises StorageRefused: if the source is missing or was replaced.
    :raises Transient: if the copy has other bytes.
    """
    with store_errors(source, f"The copy of '{file.path}' to {target.uri}"):
        client = target.hook.get_conn()
        client.copy(
            {"Bucket": source.bucket, "Key": source.key(file.path)},
            target.bucket,
            target.key(file.path),
            ExtraArgs={
                **_headers(file, metadata),
                "MetadataDirective": "REPLACE",
                "CopySourceIfMatch": f'"{verified.etag}"',
            },
            Config=source.hook.transfer_config,
        )
        head = client.head_object(Bucket=target.bucket, Key=target.key(file.path))
    if not _matches(head, file, verified):
        _require_readback(target, file, head["ETag"].strip('"'))


def same_store(one: S3Folder, other: S3Folder) -> bool:
    """Return True if both folders have one endpoint, so that the store can copy between them."""
    with store_errors(one, "The client"):
        return bool(one.hook.get_conn().meta.endpoint_url == other.hook.get_conn().meta.endpoint_url)


def is_stored(folder: S3Folder, file: FileDigest, expected: Callable[[], VerifiedObject]) -> bool:
    """Return True if the object exists with the right bytes. It is read only if its ETag cannot prove that.

    :param expected: returns the ETag of the same bytes put in the same parts. Called only if the object exists.
    """
    from botocore.exceptions import ClientError

    with store_errors(folder, f"The object '{file.path}'"):
        try:
            head = folder.hook.get_conn().head_object(Bucket=folder.bucket, Key=folder.key(file.path))
        except ClientError as error:
            # A HEAD answer does not distinguish a missing bucket from a missing object; `require_bucket` came before.
            if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey"):
                return False
            raise
    if head["ContentLength"] != file.size_bytes:
        return False
    return _matches(head, file, expected()) or read_digest(folder, file.path) == file


def _matches(head: Any, file: FileDigest, expected: VerifiedObject) -> bool:
    found = head["ETag"].strip('"'), head["ContentLength"]
    return expected.etag_from_bytes and found == (expected.etag, file.size_bytes)


def _headers(file: FileDigest, metadata: dict[str, str]) -> dict[str, Any]:
    return {"ContentType": content_type(file.path), "Metadata": {**metadata, "sha256": file.sha256}}


def _require_readback(folder: S3Folder, file: FileDigest, etag: str) -> None:
    if (found := read_digest(folder, file.path, etag)) != file:
        raise Transient(
            f"The object {folder.uri}/{file.path}",
            f"reads back as {found and found.sha256}, not {file.sha256}",
            "Airflow puts it again. If that does not help, check the store's disk.",
        )


def expected_object(folder: S3Folder, local: Path, file: FileDigest) -> VerifiedObject:
    """Return the ETag that S3 gives a local file, if the store computes ETags from the bytes. Reads the file."""
    config: TransferConfig = folder.hook.transfer_config
    if file.size_bytes < config.multipart_threshold:
        etag = hashlib.md5((local / file.path).read_bytes(), usedforsecurity=False).hexdigest()
    else:
        etag = multipart_etag(local / file.path, part_upload.part_bytes(folder, file))
    return VerifiedObject(etag=etag, etag_from_bytes=True)


def multipart_etag(path: Path, part_bytes: int) -> str:
    """Return S3's ETag of a file that is put in parts: the MD5 over the parts' MD5s, and the number of parts."""
    md5s = []
    with path.open("rb") as file:
        while block := file.read(min(part_bytes, _MD5_BLOCK_BYTES)):
            md5, size = hashlib.md5(block, usedforsecurity=False), len(block)
            while size < part_bytes and (block := file.read(min(part_bytes - size, _MD5_BLOCK_BYTES))):
                md5.update(block)
                size += len(block)
            md5s.append(md5.digest())
    return f"{hashlib.md5(b''.join(md5s), usedforsecurity=False).hexdigest()}-{len(md5s)}"


def read_digest(folder: S3Folder, path: str, etag: str | None = None) -> FileDigest | None:
    """Read an object and return its digest. Return None if it does not exist.

    :param etag: the ETag of the object to read. An object with another ETag counts as missing.
    """
    from botocore.exceptions import ClientError

    digest, size = hashlib.sha256(), 0
    with store_errors(folder, f"The object '{path}'"):
        try:
            condition = {"IfMatch": f'"{etag}"'} if etag else {}
            body = folder.hook.get_conn().get_object(Bucket=folder.bucket, Key=folder.key(path), **condition)["Body"]
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "PreconditionFailed"):
                return None
            raise
        for chunk in body.iter_chunks(READ_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileDigest(path=path, sha256=digest.hexdigest(), size_bytes=size)


def put_text(folder: S3Folder, path: str, text: str) -> None:
    """Put a small JSON text as one object."""
    with store_errors(folder, f"The object '{path}'"):
        folder.hook.get_conn().put_object(
            Bucket=folder.bucket, Key=folder.key(path), Body=text.encode(), ContentType=content_type(path)
        )


def read_text(folder: S3Folder, path: str) -> str:
    """Return the text of a small object.

    :raises StorageRefused: if the object does not exist.
    """
    with store_errors(folder, f"The object '{path}'"):
        body = folder.hook.get_conn().get_object(Bucket=folder.bucket, Key=folder.key(path))["Body"]
        return str(body.read().decode(errors="replace"))


def sizes(folder: S3Folder) -> dict[str, int]:
    """Return the size in bytes of every object below the prefix, by path."""
    return {path: item["Size"] for path, item in listing(folder).items()}


def listing(folder: S3Folder) -> dict[str, dict[str, Any]]:
    """Return the entry of ``ListObjectsV2`` for every object below the prefix, by path."""
    with store_errors(folder, "The listing"):
        pages = folder.hook.get_conn().get_paginator("list_objects_v2")
        items = [
            item
            for page in pages.paginate(Bucket=folder.bucket, Prefix=folder.prefix)
            for item in page.get("Contents", [])
        ]
    return {item["Key"].removeprefix(folder.prefix): item for item in items}


def fetch(folder: S3Folder, files: Iterable[FileDigest], target: Path) -> None:
    """Download files into `target`, an empty folder, and verify their bytes. A different file is downloaded twice.

    :raises StorageRefused: ``object_changed`` if an object has other bytes, the same ones in two downloads.
    :raises Transient: if two downloads differ from each other.
    """
    for file in files:
        if (first := _download(folder, file.path, target)) == file:
            continue
        if (second := _download(folder, file.path, target)) == file:
            log.warning("The object %s/%s was damaged on its way, and is downloaded again.", folder.uri, file.path)
            continue
        subject = f"The object {folder.uri}/{file.path}"
        found = f"{second.size_bytes} bytes with sha256 {second.sha256}, not {file.size_bytes} with {file.sha256}"
        if first != second:
            action = "Airflow tries again. If that does not help, check the network."
            raise Transient(subject, f"is damaged on its way: {found}", action)
        again = f"Clear the task '{folder.rerun}' with its downstream tasks." if folder.rerun else "Release it again."
        action = f"Another program writes there, or the store's disk is damaged. {again}"
        raise StorageRefused(subject, f"changed: it has {found}", action, code="object_changed")


def _download(folder: S3Folder, path: str, target: Path) -> FileDigest:
    """Download an object into a folder and return the digest of the file."""
    local = target / path
    local.parent.mkdir(parents=True, exist_ok=True)
    with store_errors(folder, f"The object '{path}'"):
        folder.hook.get_conn().download_file(
            folder.bucket, folder.key(path), str(local), Config=folder.hook.transfer_config
        )
    with local.open("rb") as file:
        return FileDigest(
            path=path, sha256=hashlib.file_digest(file, "sha256").hexdigest(), size_bytes=local.stat().st_size
        )


def require_object(folder: S3Folder, path: str, size_max_bytes: int) -> int:
    """Return the size in bytes of an object.

    :raises StorageRefused: if the object does not exist or is larger than the limit.
    """
    with store_errors(folder, f"The object '{path}'"):
        size = folder.hook.get_conn().head_object(Bucket=folder.bucket, Key=folder.key(path))["ContentLength"]
    if size > size_max_bytes:
        raise StorageRefused(
            f"The object {folder.uri}/{path}",
            f"has {size} bytes; the limit is {size_max_bytes}",
            "Use a file with fewer rows.",
            code="object_too_large",
        )
    return int(size)


def fetch_one(folder: S3Folder, path: str, target: Path, size_max_bytes: int) -> Path:
    """Download one object of the folder, and return the local file.

    :raises StorageRefused: if the object is larger than the limit.
    """
    require_object(folder, path, size_max_bytes)
    _download(folder, path, target)
    return target / path


def remove(folder: S3Folder, paths: Iterable[str]) -> None:
    """Delete objects of the folder. A missing object is not an error."""
    # One request per object: DeleteObjects requires a checksum header that not every S3 server accepts.
    for path in paths:
        with store_errors(folder, f"The object '{path}'"):
            folder.hook.get_conn().delete_object(Bucket=folder.bucket, Key=folder.key(path))


def console_url(folder: S3Folder) -> str:
    """Return the folder's page in the console that the connection names, else its address at the endpoint.

    The extra `console_url` is an address with ``{bucket}``, and ``{prefix}`` or ``{prefix_base64}``. An address
    without them is the root of a MinIO console.
    """
    extra = folder.hook.conn_config.extra_config or {}
    if console := str(extra.get("console_url") or "").rstrip("/"):
        pattern = console if "{bucket}" in console else f"{console}/browser/{{bucket}}/{{prefix}}"
        parts = {
            "bucket": quote(folder.bucket),
            "prefix": quote(folder.prefix),
            "prefix_base64": base64.b64encode(folder.prefix.encode()).decode(),
        }
        return re.sub(r"\{(\w+)\}", lambda found: parts.get(found[1], found[0]), pattern)
    endpoint = str(extra.get("endpoint_url") or "").rstrip("/")
    return f"{endpoint}/{folder.bucket}/{folder.prefix}" if endpoint else ""
