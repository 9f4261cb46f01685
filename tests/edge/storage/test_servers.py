"""The S3 half of a release against the servers that are here: MinIO's code, moto, and Ceph's radosgw."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError

from airflow_onnx.errors import StorageRefused
from airflow_onnx.storage import conditional_put, part_upload, s3, stored_objects
from airflow_onnx.storage.staging_base import put_folder
from onnx_release.errors import Transient
from onnx_release.records import FileDigest
from stack.ports import free_ports
from tests.edge.storage import radosgw
from tests.refusals import refused

SERVERS = ("minio", "moto", "radosgw")
# As docs/compatibility.md lists them.
CONDITIONAL, CHECKSUMS, OBJECT_LOCK = {"moto", "radosgw"}, {"moto"}, {"moto", "radosgw"}
BUCKET = "heimdall-models"


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    log = (tmp_path_factory.mktemp("moto") / "log").open("wb")
    with log, subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    ) as process:  # fmt: skip
        radosgw.await_answer(address)
        assert process.poll() is None
        yield address
        process.kill()


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if absent := radosgw.missing():
        pytest.skip(f"not installed: {', '.join(absent)}")
    with radosgw.radosgw(tmp_path_factory.mktemp("ceph"), *free_ports(2)) as address:
        yield address


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, connections: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a server, to which the connection `minio_tried` leads."""
    if request.param == "minio":
        monkeypatch.setenv("AIRFLOW_CONN_MINIO_TRIED", os.environ["AIRFLOW_CONN_MINIO_DEFAULT"])
        return "minio"
    address = httpx.URL(request.getfixturevalue("moto" if request.param == "moto" else "ceph"))
    stored = {
        "conn_type": "s3store", "host": f"http://{address.host}", "port": address.port, "login": radosgw.USER,
        "password": radosgw.SECRET,
    }  # fmt: skip
    monkeypatch.setenv("AIRFLOW_CONN_MINIO_TRIED", json.dumps(stored))
    return str(request.param)


@pytest.fixture
def tried(server: str) -> s3.S3Folder:
    """An empty folder on the server."""
    folder = s3.folder_at("minio_tried", f"s3://{BUCKET}/servers/{uuid.uuid4().hex}")
    client = folder.hook.get_conn()
    if server != "minio" and BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
        client.create_bucket(Bucket=BUCKET)
    return folder


def written(local: Path, path: str, content: bytes) -> FileDigest:
    (local / path).parent.mkdir(parents=True, exist_ok=True)
    (local / path).write_bytes(content)
    return FileDigest(path=path, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def test_a_folder_is_put_verified_copied_fetched_and_removed(
    server: str, tried: s3.S3Folder, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (
        written(local, "MLmodel", b"abc"),
        written(local, "data/x.data", bytes(range(256)) * (s3.PART_BYTES // 200)),
    )
    reads: list[str] = []
    real = s3.read_digest
    monkeypatch.setattr(s3, "read_digest", lambda folder, path, *more: reads.append(path) or real(folder, path, *more))
    verified = {file.path: s3.put(tried, local, file, {"training-run-id": "r"}, absent=True) for file in files}
    assert reads == [], "the ETags come from the bytes"
    assert s3.sizes(tried) == {file.path: file.size_bytes for file in files}
    assert stored_objects.metadata(tried, "MLmodel")["training-run-id"] == "r"
    target = replace(tried, prefix=f"{tried.prefix}copied/")
    for file in files:
        assert s3.is_stored(tried, file, partial(verified.__getitem__, file.path))
        s3.copy(tried, target, file, verified[file.path], {})
    s3.fetch(target, files, tmp_path / "back")
    # Again, and one of them is damaged: the objects that are there stay, and the other is put again.
    written(local, "other", b"abd")
    s3.put(tried, local, written(local, "MLmodel", b"abd"), {})
    assert not s3.is_stored(tried, files[0], partial(verified.__getitem__, "MLmodel"))
    with refused("object_changed", "MLmodel"):
        s3.fetch(tried, files, tmp_path / "again")
    written(local, "MLmodel", b"abc")
    assert [is_new for _, is_new in put_folder(local, files, tried, {})] == [True, False]
    assert s3.read_digest(tried, "MLmodel") == files[0]
    # Whatever the store does with a condition on the source, a copy of other bytes does not pass.
    s3.put(tried, local, written(local, "MLmodel", b"abe"), {})
    with pytest.raises((StorageRefused, Transient)):
        s3.copy(tried, target, files[0], verified["MLmodel"], {})
    s3.remove(tried, [*s3.sizes(tried), "never there"])
    assert s3.sizes(tried) == {}


def test_conditions_and_checksums_are_used_where_the_store_has_them(
    server: str, tried: s3.S3Folder, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(local, "f", b"abc")
    s3.put(tried, local, file, {}, absent=True)
    assert ("ChecksumSHA256" in conditional_put.head(tried, "f")) == (server in CHECKSUMS)
    if server in CONDITIONAL:
        with refused("object_changed", "'f'"):
            s3.put(tried, local, file, {}, absent=True)
    else:
        s3.put(tried, local, file, {}, absent=True)
    # As in a store that encrypts with own keys: the ETag is not the MD5.
    other = s3.VerifiedObject(etag="of other rules", etag_from_bytes=True)
    monkeypatch.setattr(s3, "expected_object", lambda *_: other)
    monkeypatch.setattr(part_upload, "_other_etags", set())
    reads: list[str] = []
    real = s3.read_digest
    monkeypatch.setattr(s3, "read_digest", lambda folder, path, *more: reads.append(path) or real(folder, path, *more))
    large = written(local, "large", bytes(2 * s3.PART_BYTES + 1))
    assert not s3.put(tried, local, file, {}).etag_from_bytes
    # Parts have a SHA-256 where it proved an object before, and an MD5 in the other stores.
    assert s3.put(tried, local, large, {}).etag_from_bytes == (server not in CHECKSUMS)
    assert ("ChecksumSHA256" in conditional_put.head(tried, "large")) == (server in CHECKSUMS)
    assert reads == ([] if server in CHECKSUMS else ["f"])


def test_ages_and_uploads_are_listed(tried: s3.S3Folder) -> None:
    s3.put_text(tried, "a/x", "x")
    client = tried.hook.get_conn()
    begun = client.create_multipart_upload(Bucket=tried.bucket, Key=tried.key("a/y"))["UploadId"]
    (found,) = stored_objects.uploads(tried)
    assert (found.path, found.upload_id) == ("a/y", begun)
    assert -5 < stored_objects.folder_now(tried).age_s < 600
    stored_objects.abort(tried, found.path, found.upload_id)
    assert list(stored_objects.uploads(tried)) == []


def test_a_missing_bucket_and_a_missing_object_have_their_codes(
    server: str, tried: s3.S3Folder, tmp_path: Path
) -> None:
    with refused("access_denied" if server == "minio" else "no_bucket", "no-such-bucket"):
        s3.require_bucket(replace(tried, bucket="no-such-bucket"))
    assert s3.read_digest(tried, "nothing") is None
    with refused("not_found"):
        s3.fetch_one(tried, "nothing", tmp_path, 1)


def test_with_object_lock_a_released_object_outlives_its_deletion(server: str, tried: s3.S3Folder, local: Path) -> None:
    if server not in OBJECT_LOCK:
        pytest.skip("the gateway of MinIO's code has no object lock")
    client, bucket = tried.hook.get_conn(), f"locked-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
    client.put_object_lock_configuration(
        Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    folder, file = replace(tried, bucket=bucket), written(local, "f", b"abc")
    s3.put(folder, local, file, {}, absent=True)
    s3.put(folder, local, written(local, "f", b"changed"), {})
    s3.remove(folder, ["f"])
    assert s3.sizes(folder) == {}
    versions = client.list_object_versions(Bucket=bucket, Prefix=folder.key("f"))["Versions"]
    (first,) = [one["VersionId"] for one in versions if one["Size"] == 3]
    with pytest.raises(ClientError, match="AccessDenied"):
        client.delete_object(Bucket=bucket, Key=folder.key("f"), VersionId=first)
    kept = client.get_object(Bucket=bucket, Key=folder.key("f"), VersionId=first)["Body"].read()
    assert kept == b"abc"


def test_a_part_that_changes_on_its_way_is_refused_and_nothing_stays(
    tried: s3.S3Folder, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, client = written(local, "large", bytes(2 * s3.PART_BYTES + 1)), tried.hook.get_conn()
    monkeypatch.setattr(part_upload, "_other_etags", set())
    signed: list[bytes] = []

    def spoiled(request: Any, **_: Any) -> None:
        signed.append(request.headers["X-Amz-Content-SHA256"])
        if "partNumber=2" in request.url:
            request.body = io.BytesIO(b"x" + request.body.read()[1:])

    client.meta.events.register("before-send.s3.UploadPart", spoiled)
    try:
        with pytest.raises((StorageRefused, Transient)):
            s3.put(tried, local, large, {})
    finally:
        client.meta.events.unregister("before-send.s3.UploadPart", spoiled)
    assert set(signed) == {b"UNSIGNED-PAYLOAD"}
    assert list(stored_objects.uploads(tried)) == []


@pytest.mark.parametrize("change", ["another byte", "a longer file", "a shorter file"])
def test_a_large_file_that_differs_from_its_record_becomes_no_object(
    tried: s3.S3Folder, local: Path, change: str
) -> None:
    size = 2 * s3.PART_BYTES + 1
    large = written(local, "large", bytes(size))
    content = {"another byte": b"x" + bytes(size - 1), "a longer file": bytes(size + 9), "a shorter file": bytes(9)}
    (local / "large").write_bytes(content[change])
    with refused("changed_files", "large"):
        s3.put(tried, local, large, {})
    assert s3.sizes(tried) == {}
    assert list(stored_objects.uploads(tried)) == []


def test_a_store_that_refuses_the_headers_gets_the_file_without_them(
    tried: s3.S3Folder, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, file = tried.hook.get_conn(), written(local, "f", b"abc")
    monkeypatch.setattr(conditional_put, "_refused", set())

    def strict(params: dict[str, Any], **_: Any) -> None:
        if {"If-None-Match", "x-amz-checksum-sha256"} & set(params["headers"]):
            raise ClientError({"Error": {"Code": "NotImplemented"}}, "PutObject")

    client.meta.events.register("before-call.s3.PutObject", strict)
    try:
        s3.put(tried, local, file, {}, absent=True)
        assert s3.read_digest(tried, "f") == file
        assert conditional_put._refused == {client.meta.endpoint_url}
    finally:
        client.meta.events.unregister("before-call.s3.PutObject", strict)
