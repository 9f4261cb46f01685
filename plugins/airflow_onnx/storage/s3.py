"""Folders in an S3 store, through Airflow's `S3Hook`: put and verify, read, fetch, remove."""

from __future__ import annotations

import hashlib
import logging
import mimetypes
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_release.errors import Refused, Transient
from onnx_release.limits import S3_PART_BYTES
from onnx_release.records import FileDigest, StagedFile

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from boto3.s3.transfer import TransferConfig

log = logging.getLogger(__name__)

READ_CHUNK_BYTES = 1 << 20
IN_PARTS = {"multipart_threshold": S3_PART_BYTES, "multipart_chunksize": S3_PART_BYTES}
CONTENT_TYPES = {
    ".onnx": "application/octet-stream",
    ".data": "application/octet-stream",
    ".yaml": "application/yaml",
    "MLmodel": "application/yaml",
}
# Answers that the same request gets again, in S3's own words; the numbers are what a HEAD request gets instead.
_CHANGED = "Somebody has written there since: look for who, then clear the task '{rerun}' with its downstream tasks."
_ACCESS = "Check the key, the secret and the account's policy in the connection."
FINAL_ANSWERS = {
    "NoSuchBucket": "Create the bucket, or name another one.",
    "NoSuchKey": "Clear the task '{rerun}' with its downstream tasks, so that the objects are put again.",
    "404": "Create the bucket, or clear the task '{rerun}' with its downstream tasks.",
    "PreconditionFailed": _CHANGED,
    "412": _CHANGED,
    "AccessDenied": _ACCESS,
    "403": _ACCESS,
    "InvalidAccessKeyId": _ACCESS,
    "SignatureDoesNotMatch": _ACCESS,
    "InvalidBucketName": "Name another bucket.",
    "XMinioStorageFull": "Free some room in the store.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A bucket and the key prefix (ending in ``/``) that stands for one folder in it.

    `rerun` is the task that puts the objects.
    """

    hook: S3Hook = field(repr=False)
    bucket: str
    prefix: str
    rerun: str = "upload"

    @property
    def uri(self) -> str:
        """The folder as ``s3://bucket/prefix``, without a trailing slash."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, path: str) -> str:
        """Return the object key of a file of the folder."""
        return self.prefix + path


def folder_at(s3_conn_id: str, uri: str, **more: Any) -> Folder:
    """Return the folder that ``s3://bucket/prefix`` names, through an Airflow connection of type `aws`.

    :param more: further fields of `Folder`.
    """
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    # The hook lets the connection's own `service_config` change this dictionary.
    hook = S3Hook(s3_conn_id, transfer_config_args=dict(IN_PARTS))
    return Folder(hook=hook, bucket=bucket, prefix=f"{prefix.strip('/')}/".lstrip("/"), **more)


@contextmanager
def explained(folder: Folder, what: str) -> Iterator[None]:
    """Turn what boto3 raises about `what` into `Refused` or `Transient` with the next action."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

    subject = f"{what} at {folder.uri} (connection '{folder.hook.aws_conn_id}')"
    try:
        yield
    except (ClientError, S3UploadFailedError) as error:
        # boto3's transfer wraps the answer; the original hangs on the exception as its context.
        answer = error if isinstance(error, ClientError) else error.__context__
        code = answer.response.get("Error", {}).get("Code", "") if isinstance(answer, ClientError) else ""
        if code in FINAL_ANSWERS:
            action = FINAL_ANSWERS[code].format(rerun=folder.rerun)
            raise Refused(subject, f"the store refuses ({code})", action) from error
        raise Transient(subject, f"the store failed: {str(error)[:300]}", _OUTAGE) from error
    except (NoCredentialsError, ParamValidationError) as error:
        raise Refused(subject, f"the request cannot be made: {str(error)[:300]}", _ACCESS) from error
    except BotoCoreError as error:
        raise Transient(subject, f"the store cannot be reached: {str(error)[:300]}", _OUTAGE) from error


def require_bucket(folder: Folder) -> None:
    """Raise `Refused` when the bucket does not exist or may not be used, before anything is put."""
    with explained(folder, f"bucket '{folder.bucket}'"):
        folder.hook.get_conn().head_bucket(Bucket=folder.bucket)


def put(folder: Folder, local: Path, file: FileDigest, metadata: dict[str, str]) -> StagedFile:
    """Put one file, in parts when it is large, and verify it; S3 shows the object only when it is complete.

    Returns the ETag of what was verified.

    The store answers with an ETag that it made of what it received: the MD5 of the bytes, or that of its parts' MD5s.
    Where it makes its ETags in another way (encryption with keys of its own, some gateways), the object is read.

    :raises Transient: when the store holds something else.
    """
    path = local / file.path
    # Where its ETag is not known yet, the file is read for it while it is sent.
    with ThreadPoolExecutor(1) as beside, explained(folder, file.path):
        expected = beside.submit(_etag, local, file, folder.hook.transfer_config)
        client = folder.hook.get_conn()
        client.upload_file(
            str(path),
            folder.bucket,
            folder.key(file.path),
            ExtraArgs=_described(file, metadata),
            Config=folder.hook.transfer_config,
        )
        head = client.head_object(Bucket=folder.bucket, Key=folder.key(file.path))
        etag = head["ETag"].strip('"')
        if (etag, head["ContentLength"]) == (expected.result(), file.size_bytes):
            return StagedFile(etag=etag, by_content=True)
    _require_reads_back(folder, file, etag)
    return StagedFile(etag=etag, by_content=False)


def copy(source: Folder, target: Folder, file: FileDigest, staged: StagedFile, metadata: dict[str, str]) -> None:
    """Let the store copy an object, in the parts that it was put in, and verify the copy.

    :param staged: what was verified at the source: if that is not what lies there by now, nothing is copied.
    :raises Refused: when the source is gone or is another.
    :raises Transient: when the copy is something else.
    """
    with explained(source, f"{file.path}, on its way to {target.uri},"):
        client = target.hook.get_conn()
        client.copy(
            {"Bucket": source.bucket, "Key": source.key(file.path)},
            target.bucket,
            target.key(file.path),
            ExtraArgs={
                **_described(file, metadata),
                "MetadataDirective": "REPLACE",
                "CopySourceIfMatch": f'"{staged.etag}"',
            },
            Config=source.hook.transfer_config,
        )
        head = client.head_object(Bucket=target.bucket, Key=target.key(file.path))
    if not _is_content(head, file, staged):
        _require_reads_back(target, file, head["ETag"].strip('"'))


def same_store(one: Folder, other: Folder) -> bool:
    """Tell whether the store of one folder can copy from the other: they have one address."""
    return bool(one.hook.get_conn().meta.endpoint_url == other.hook.get_conn().meta.endpoint_url)


def holds(folder: Folder, file: FileDigest, expected: Callable[[], StagedFile]) -> bool:
    """Tell whether the object is there and right; it is read only where its ETag says nothing.

    :param expected: returns the ETag of the same bytes, put in the same way; asked only if there is an object.
    """
    head = _head(folder, file.path)
    if head is None or head["ContentLength"] != file.size_bytes:
        return False
    return _is_content(head, file, expected()) or read_digest(folder, file.path) == file


def _is_content(head: Any, file: FileDigest, expected: StagedFile) -> bool:
    return expected.by_content and (head["ETag"].strip('"'), head["ContentLength"]) == (expected.etag, file.size_bytes)


def _head(folder: Folder, path: str) -> Any | None:
    from botocore.exceptions import ClientError

    with explained(folder, path):
        try:
            return folder.hook.get_conn().head_object(Bucket=folder.bucket, Key=folder.key(path))
        except ClientError as error:
            # The answer to HEAD has no body to say whether it is the bucket or the object; the bucket was seen before.
            if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey"):
                return None
            raise


def _described(file: FileDigest, metadata: dict[str, str]) -> dict[str, Any]:
    return {"ContentType": content_type(file.path), "Metadata": {**metadata, "sha256": file.sha256}}


def _require_reads_back(folder: Folder, file: FileDigest, etag: str) -> None:
    if (found := read_digest(folder, file.path, etag)) != file:
        raise Transient(
            f"object {folder.uri}/{file.path}",
            f"reads back as {found and found.sha256}, not {file.sha256}",
            "It is put again; if that does not help, look at the store's disk.",
        )


def expected_etag(folder: Folder, local: Path, file: FileDigest) -> StagedFile:
    """Return the ETag that the file will have there, if the store makes its ETags of the bytes."""
    return StagedFile(etag=_etag(local, file, folder.hook.transfer_config), by_content=True)


def _etag(local: Path, file: FileDigest, config: TransferConfig) -> str:
    """Return the ETag that S3 gives an object that boto3 puts with this configuration; the file is read if need be."""
    from s3transfer.utils import ChunksizeAdjuster  # type: ignore[import-untyped]

    from onnx_release.artifact.digests import etag_of

    if file.size_bytes < config.multipart_threshold:
        return hashlib.md5((local / file.path).read_bytes(), usedforsecurity=False).hexdigest()
    part_bytes = ChunksizeAdjuster().adjust_chunksize(config.multipart_chunksize, file.size_bytes)
    # The export has taken this one while it waited.
    known = file.etag if part_bytes == S3_PART_BYTES else ""
    return known or etag_of(local / file.path, part_bytes)


def content_type(path: str) -> str:
    """Return the media type that a browser or a client should see for this file of a model folder."""
    name = Path(path)
    known = CONTENT_TYPES.get(name.suffix or name.name)
    return known or mimetypes.guess_type(path)[0] or "application/octet-stream"


def read_digest(folder: Folder, path: str, etag: str = "") -> FileDigest | None:
    """Read an object back, byte by byte, and return what it is; None when there is no such object.

    :param etag: that of the object that is meant; there is none when it has another by now.
    """
    from botocore.exceptions import ClientError

    digest, size = hashlib.sha256(), 0
    with explained(folder, path):
        try:
            only = {"IfMatch": f'"{etag}"'} if etag else {}
            body = folder.hook.get_conn().get_object(Bucket=folder.bucket, Key=folder.key(path), **only)["Body"]
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "PreconditionFailed"):
                return None
            raise
        for chunk in body.iter_chunks(READ_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileDigest(path=path, sha256=digest.hexdigest(), size_bytes=size)


def sizes(folder: Folder) -> dict[str, int]:
    """Return path and size in bytes of every object below the prefix."""
    return {path: item["Size"] for path, item in listing(folder).items()}


def listing(folder: Folder) -> dict[str, dict[str, Any]]:
    """Return what the store says of every object below the prefix, by path."""
    with explained(folder, "the listing"):
        pages = folder.hook.get_conn().get_paginator("list_objects_v2")
        found: list[dict[str, Any]] = []
        for page in pages.paginate(Bucket=folder.bucket, Prefix=folder.prefix):
            found += page.get("Contents", [])
    return {item["Key"].removeprefix(folder.prefix): item for item in found}


def fetch(folder: Folder, files: Iterable[FileDigest], target: Path) -> None:
    """Download the files into `target`, an empty folder; what arrives is for the caller to verify."""
    for file in files:
        local = target / file.path
        local.parent.mkdir(parents=True, exist_ok=True)
        with explained(folder, file.path):
            folder.hook.get_conn().download_file(
                folder.bucket, folder.key(file.path), str(local), Config=folder.hook.transfer_config
            )


def fetch_one(folder: Folder, path: str, target: Path, size_max_bytes: int) -> Path:
    """Download one object of the folder, and return the file; raises `Refused` when it is larger than the limit."""
    with explained(folder, path):
        size = folder.hook.get_conn().head_object(Bucket=folder.bucket, Key=folder.key(path))["ContentLength"]
    if size > size_max_bytes:
        raise Refused(
            f"object {folder.uri}/{path}", f"has {size} bytes, at most {size_max_bytes} are read", "Give fewer rows."
        )
    fetch(folder, [FileDigest(path=path, sha256="", size_bytes=size)], target)
    return target / path


def remove(folder: Folder, paths: Iterable[str]) -> None:
    """Delete objects of the folder; one that is gone already is no error."""
    # One by one: DeleteObjects wants a checksum header that not every S3 server agrees on.
    for path in paths:
        with explained(folder, path):
            folder.hook.get_conn().delete_object(Bucket=folder.bucket, Key=folder.key(path))


def console_url(folder: Folder) -> str:
    """Return where a person can look at the folder: the console named in the connection, else the endpoint."""
    extra = folder.hook.conn_config.extra_config or {}
    if console := str(extra.get("console_url") or "").rstrip("/"):
        return f"{console}/browser/{folder.bucket}/{folder.prefix}"
    endpoint = str(extra.get("endpoint_url") or "").rstrip("/")
    return f"{endpoint}/{folder.bucket}/{folder.prefix}" if endpoint else ""


_OUTAGE = "It is tried again; if that does not help, look at the store's log and the network between."
