"""Checks of a folder in an S3 store, with objects of its own. At the end none of them is left.

The rights to delete and to abort are checked first, on a missing object and a missing upload. Without them nothing is
written, because it would stay.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from airflow_onnx.errors import StorageRefused
from airflow_onnx.hooks.s3_store import PROBE_CONFIG, s3_hook
from airflow_onnx.preflight.checks import Subject, failure
from airflow_onnx.preflight.clock import Clock, parse_date
from airflow_onnx.storage import s3, stored_objects
from airflow_onnx.storage.s3_errors import require_connection, store_errors
from onnx_release.errors import Transient

MARK = "onnx-release-check"
_OWNER_CHARACTERS = 6
_TEXT = "This object belongs to a check of the ONNX release. It may be deleted.\n"


@dataclass(frozen=True)
class StoreProbe:
    """The checks of one folder.

    :param conn_id: the connection.
    :param uri: the folder, ``s3://bucket/prefix``.
    :param owner: the DAG run of a release, which can `sweep` what a killed check left. Empty for any other check.
    """

    conn_id: str
    uri: str
    owner: str = ""

    @cached_property
    def folder(self) -> s3.S3Folder:
        """The folder, through a client with short time limits."""
        conn = require_connection(self.conn_id)
        bucket, _, prefix = self.uri.removeprefix("s3://").partition("/")
        hook = s3_hook(conn, config=PROBE_CONFIG)
        return s3.S3Folder(hook=hook, bucket=bucket, prefix=f"{prefix.strip('/')}/".lstrip("/"), rerun=None)

    @cached_property
    def name(self) -> str:
        """The name of the object of this check."""
        own = uuid.uuid4().hex[:12]
        return f"{_begin(self.owner)}{own[_OWNER_CHARACTERS:]}.txt" if self.owner else f"{MARK}-{own}.txt"

    @property
    def copy_name(self) -> str:
        """The name of its copy."""
        return f"{self.name}.copy"

    def run(self, subject: Subject) -> None:
        """Make all checks."""
        subject.check("store.connection", self.connection)
        subject.check("store.bucket", self.bucket, needs=["store.connection"])
        subject.check("store.list", self.listing, needs=["store.bucket"])
        subject.check("store.delete", self.delete, needs=["store.bucket"])
        subject.check("store.multipart", self.multipart, needs=["store.bucket"])
        try:
            subject.check("store.put", self.put, needs=["store.delete"])
            subject.check("store.get", self.get, needs=["store.put"])
            subject.check("store.copy", self.copy, needs=["store.put"])
        finally:
            subject.check("store.clean", self.clean, needs=["store.delete"])

    def connection(self) -> str:
        """Return the endpoint and the kind of account."""
        config: Any = self.folder.hook.conn_config
        account = "own keys" if config.aws_access_key_id else "the account of this host"
        return f"{config.endpoint_url or 'Amazon S3'}, {account}"

    def bucket(self) -> str:
        """Require that the bucket exists."""
        try:
            s3.require_bucket(self.folder)
        except StorageRefused as refusal:
            if refusal.code != "access_denied":
                raise
            # Stores deny an account without the right to list all buckets also a bucket that does not exist.
            action = f"Check that the bucket exists. {refusal.action}"
            raise StorageRefused(refusal.subject, refusal.problem, action, code=refusal.code) from refusal
        return f"s3://{self.folder.bucket} exists"

    def listing(self) -> str:
        """Read the begin of the listing."""
        with self._errors("The listing"):
            self._client.list_objects_v2(Bucket=self.folder.bucket, Prefix=self.folder.prefix, MaxKeys=1)
        return f"{self.folder.uri} can be listed"

    def delete(self) -> str:
        """Delete an object that does not exist."""
        s3.remove(self.folder, [self.name])
        return "allowed"

    def multipart(self) -> str:
        """Abort an upload that does not exist, then begin one and abort it."""
        place = {"Bucket": self.folder.bucket, "Key": self.folder.key(self.name)}
        try:
            with self._errors("The abort of an upload in parts"):
                self._client.abort_multipart_upload(**place, UploadId=uuid.uuid4().hex)
        except StorageRefused as refusal:
            if refusal.code == "access_denied":
                raise
        except Exception:  # noqa: BLE001, S110 - only the right counts; each store names a missing upload differently
            pass
        s3.require_write_access(self.folder, self.name)
        return "an upload was begun and aborted"

    def put(self) -> str:
        """Put the object."""
        s3.put_text(self.folder, self.name, _TEXT)
        return f"{self.folder.uri}/{self.name}"

    def get(self) -> str:
        """Read it back."""
        found = s3.read_text(self.folder, self.name)
        if found != _TEXT:
            raise failure(f"the object reads back as {found!r:.60}", "Check the store's disk, and proxies before it.")
        return f"{len(_TEXT)} bytes, the same"

    def copy(self) -> str:
        """Let the store copy it."""
        self.copy_from(self)
        return "allowed"

    def copy_from(self, source: StoreProbe) -> None:
        """Copy the object of a source to this folder."""
        with self._errors("The copy of an object"):
            self._client.copy_object(
                Bucket=self.folder.bucket,
                Key=self.folder.key(self.copy_name),
                CopySource={"Bucket": source.folder.bucket, "Key": source.folder.key(source.name)},
            )

    def clean(self) -> str:
        """Delete the object and its copy. A name of an object that stays is in the error."""
        s3.remove(self.folder, [self.name, self.copy_name])
        return "nothing is left"

    def clock(self) -> Clock:
        """Compare the clock of this host with the store's."""
        began = time.time()
        with self._errors("The listing"):
            # Not a HEAD request of the bucket: the right to list may be limited to the folder.
            answer = self._client.list_objects_v2(Bucket=self.folder.bucket, Prefix=self.folder.prefix, MaxKeys=1)
        return parse_date(answer["ResponseMetadata"]["HTTPHeaders"].get("date", ""), began)

    @property
    def _client(self) -> Any:
        return self.folder.hook.get_conn()

    @contextmanager
    def _errors(self, subject: str) -> Iterator[None]:
        with store_errors(self.folder, subject):
            yield


def sweep(folder: s3.S3Folder, owner: str) -> None:
    """Remove the objects and uploads of an owner's checks, which a killed task or an outage left in a folder."""
    ours = replace(folder, prefix=folder.key(_begin(owner)))
    s3.remove(ours, [path for path, _, _ in stored_objects.objects(ours)])
    # Some stores cannot list uploads, and some accounts may not. The garbage collection removes them.
    with suppress(StorageRefused, Transient):
        for upload in stored_objects.uploads(ours):
            stored_objects.abort(ours, upload.path, upload.upload_id)


def _begin(owner: str) -> str:
    return f"{MARK}-{hashlib.sha256(owner.encode()).hexdigest()[:_OWNER_CHARACTERS]}"


def check_staging_copy(subject: Subject, staging: StoreProbe, target: StoreProbe) -> None:
    """Check that the target's account may copy from the staging folder, as the upload does."""

    def copy() -> str:
        if not s3.same_store(staging.folder, target.folder):
            return "another store: the upload sends the files"
        # An own name: the checks of both folders may run at the same time.
        source = replace(staging)
        try:
            source.put()
            target.copy_from(source)
        finally:
            source.clean()
            target.clean()
        return "allowed"

    subject.check("staging.copy", copy)
