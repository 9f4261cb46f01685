"""Contents of a folder in the store, with ages by the store's own clock.

An age is the header `Date` of the answer minus the time of the object in the same answer. The clock of this host has no
part in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self

from airflow_onnx.errors import StorageRefused
from airflow_onnx.storage.object_metadata import TRACKING_SERVER
from airflow_onnx.storage.s3 import S3Folder
from airflow_onnx.storage.s3_errors import store_errors


@dataclass(slots=True)
class StoredFolder:
    """The objects of one folder.

    :param newest: the time of its newest object, and `age_s` the age of that object in s.
    """

    newest: datetime
    age_s: float = math.inf
    size_bytes: int = 0
    paths: list[str] = field(default_factory=list)

    @classmethod
    def of(cls) -> Self:
        """Return a folder without an object."""
        return cls(datetime.min.replace(tzinfo=UTC))

    def add(self, path: str, item: dict[str, Any], now: datetime) -> None:
        """Add an object, with its entry of ``ListObjectsV2`` and the store's time."""
        self.newest = max(self.newest, item["LastModified"])
        self.age_s = min(self.age_s, (now - item["LastModified"]).total_seconds())
        self.size_bytes += item["Size"]
        self.paths.append(path)


@dataclass(frozen=True, slots=True)
class UploadInParts:
    """An upload in parts that was begun and not ended."""

    path: str
    upload_id: str
    age_s: float


def objects(folder: S3Folder) -> Iterator[tuple[str, dict[str, Any], datetime]]:
    """Yield path and entry of each object below the prefix, and the store's time.

    :raises StorageRefused: ``no_store_clock`` if an answer has no time.
    """
    for page in _pages(folder, "list_objects_v2"):
        now = store_time(page)
        for item in page.get("Contents", []):
            yield item["Key"].removeprefix(folder.prefix), item, now


def folder_now(folder: S3Folder) -> StoredFolder:
    """Return everything in the folder as one."""
    found = StoredFolder.of()
    for path, item, now in objects(folder):
        found.add(path, item, now)
    return found


def uploads(folder: S3Folder) -> Iterator[UploadInParts]:
    """Yield the uploads in parts below the prefix.

    :raises StorageRefused: if the store cannot list them, or the account may not.
    """
    for page in _pages(folder, "list_multipart_uploads"):
        now = store_time(page)
        for item in page.get("Uploads", []):
            path = item["Key"].removeprefix(folder.prefix)
            yield UploadInParts(path, item["UploadId"], (now - item["Initiated"]).total_seconds())


def abort(folder: S3Folder, path: str, upload_id: str) -> None:
    """Abort an upload in parts, and remove its parts."""
    with store_errors(folder, f"The upload of '{path}'"):
        folder.hook.get_conn().abort_multipart_upload(Bucket=folder.bucket, Key=folder.key(path), UploadId=upload_id)


def metadata(folder: S3Folder, path: str) -> dict[str, str]:
    """Return the metadata of an object."""
    with store_errors(folder, f"The object '{path}'"):
        head = folder.hook.get_conn().head_object(Bucket=folder.bucket, Key=folder.key(path))
    return dict(head.get("Metadata") or {})


def writer(folder: S3Folder, paths: Iterable[str]) -> str:
    """Return the MLflow server whose release wrote the objects, by their metadata. Empty if none has it."""
    found = (metadata(folder, path).get(TRACKING_SERVER) for path in paths)
    return next(filter(None, found), "")


def time_now(folder: S3Folder) -> datetime:
    """Return the store's time."""
    return store_time(next(iter(_pages(folder, "list_objects_v2"))))


def store_time(page: dict[str, Any]) -> datetime:
    """Return the time of an answer of the store."""
    return read_date(page["ResponseMetadata"]["HTTPHeaders"].get("date"), "The store")


def read_date(header: str | None, subject: str) -> datetime:
    """Return the time of a header `Date`.

    :param subject: the server, for the message.
    :raises StorageRefused: ``no_store_clock`` without a readable time.
    """
    try:
        moment = parsedate_to_datetime(header or "")
    except ValueError:
        raise StorageRefused(
            subject,
            f"sends no time in the header Date ({header!r:.80}), so no age can be measured",
            "Let the proxy before it pass this header on.",
            code="no_store_clock",
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _pages(folder: S3Folder, operation: str) -> Iterator[dict[str, Any]]:
    with store_errors(folder, "The listing"):
        paginator = folder.hook.get_conn().get_paginator(operation)
        yield from paginator.paginate(Bucket=folder.bucket, Prefix=folder.prefix)
