"""Folders in a real S3 store: whole or not there, and errors that say what to do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from airflow_onnx.storage import s3
from onnx_release.artifact.digests import etag_of
from onnx_release.errors import Refused, Transient
from onnx_release.limits import S3_PART_BYTES
from onnx_release.records import FileDigest, StagedFile
from tests.edge.conftest import Services


def write(local: Path, path: str, content: bytes) -> FileDigest:
    (local / path).parent.mkdir(parents=True, exist_ok=True)
    (local / path).write_bytes(content)
    return FileDigest(path=path, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def test_a_large_file_goes_in_parts_and_reads_back(folder: s3.Folder, local: Path) -> None:
    file = write(local, "model.onnx.data", bytes(range(256)) * (2 * S3_PART_BYTES // 256 + 1))
    s3.put(folder, local, file, {"training-run-id": "r"})
    assert s3.read_digest(folder, file.path) == file
    head = folder.hook.head_object(folder.key(file.path), folder.bucket)
    assert head is not None
    assert head["ETag"].strip('"').endswith("-3"), "two parts and a bit"
    assert head["Metadata"] == {"training-run-id": "r", "sha256": file.sha256}


MIB = 2**20


@pytest.mark.parametrize(
    "size_bytes", [0, 1, S3_PART_BYTES - 1, S3_PART_BYTES, 2 * S3_PART_BYTES, 2 * S3_PART_BYTES + 1]
)
def test_what_was_put_is_verified_without_reading_it(
    folder: s3.Folder, local: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    monkeypatch.setattr(s3, "read_digest", lambda *_: pytest.fail("the object was read"))
    s3.put(folder, local, write(local, "f", bytes(size_bytes)), {})
    assert s3.sizes(folder) == {"f": size_bytes}


def test_an_etag_that_the_export_has_taken_is_not_taken_again(
    folder: s3.Folder, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(local, "f", bytes(range(256)) * (2 * S3_PART_BYTES // 256 + 1))
    known = file.replace(etag=etag_of(local / "f", S3_PART_BYTES))
    monkeypatch.setattr(
        "onnx_release.artifact.digests.etag_of", lambda *_: pytest.fail("the file was read for its ETag")
    )
    with monkeypatch.context() as patch:
        patch.setattr(s3, "read_digest", lambda *_: pytest.fail("the object was read"))
        assert s3.put(folder, local, known, {}) == StagedFile(etag=known.etag, by_content=True)
    # A wrong one costs a look at the object, and no more.
    assert not s3.put(folder, local, file.replace(etag=f"{'0' * 32}-3"), {}).by_content


def test_an_etag_for_other_parts_is_not_used(folder: s3.Folder, local: Path) -> None:
    hook = S3Hook("minio_default", transfer_config_args=s3.IN_PARTS | {"multipart_chunksize": 20 * MIB})
    file = write(local, "f", bytes(42 * MIB))
    known = file.replace(etag=etag_of(local / "f", S3_PART_BYTES))
    staged = s3.put(dataclasses.replace(folder, hook=hook), local, known, {})
    assert staged.by_content
    assert staged.etag.endswith("-3")


def test_where_the_etag_says_nothing_the_object_is_read(
    folder: s3.Folder, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_etag", lambda *_: "made by other rules")
    file = write(local, "f", b"abc")
    s3.put(folder, local, file, {})
    with pytest.raises(Transient, match=f"reads back as {file.sha256}, not {'0' * 64}"):
        s3.put(folder, local, file.replace(sha256="0" * 64), {})


def test_other_bytes_in_the_store_are_noticed(folder: s3.Folder, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, send = write(local, "f", b"abc"), folder.hook.get_conn().upload_file
    write(local, "other", b"abd")

    def spoiled(_: str, *args: object, **kwargs: object) -> None:
        send(str(local / "other"), *args, **kwargs)

    monkeypatch.setattr(folder.hook.get_conn(), "upload_file", spoiled)
    with pytest.raises(Transient, match="reads back as"):
        s3.put(folder, local, file, {})


@pytest.mark.parametrize(
    ("path", "expected"),
    [("report.json", "application/json"), ("MLmodel", "application/yaml"), ("a/b.onnx", "application/octet-stream")],
)
def test_content_types(folder: s3.Folder, local: Path, path: str, expected: str) -> None:
    s3.put(folder, local, write(local, path, b"x"), {})
    head = folder.hook.head_object(folder.key(path), folder.bucket)
    assert head is not None
    assert head["ContentType"] == expected


def test_a_folder_comes_back_as_it_went(folder: s3.Folder, local: Path, tmp_path: Path) -> None:
    files = [write(local, "MLmodel", b"a"), write(local, "data/one two.bin", b"b")]
    for file in files:
        s3.put(folder, local, file, {})
    assert s3.sizes(folder) == {"MLmodel": 1, "data/one two.bin": 1}
    back = tmp_path / "back"
    back.mkdir()
    s3.fetch(folder, files, back)
    assert (back / "data/one two.bin").read_bytes() == b"b"
    s3.remove(folder, ["MLmodel", "data/one two.bin", "never there"])
    assert s3.sizes(folder) == {}


def test_an_absent_object_reads_as_none(folder: s3.Folder) -> None:
    assert s3.read_digest(folder, "nothing") is None


def test_a_missing_bucket_is_refused_with_the_next_action(folder: s3.Folder) -> None:
    with pytest.raises(Refused, match=r"no-such-bucket.*minio_default.*Create the bucket"):
        s3.require_bucket(dataclasses.replace(folder, bucket="no-such-bucket"))


def test_wrong_keys_are_refused_on_every_call(folder: s3.Folder, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    wrong = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"]) | {"password": "wrong"}
    monkeypatch.setenv("AIRFLOW_CONN_MINIO_WRONG", json.dumps(wrong))
    bad = dataclasses.replace(folder, hook=S3Hook("minio_wrong"))
    file = write(local, "f", b"x")
    with pytest.raises(Refused, match=r"minio_wrong.*Check the key"):
        s3.require_bucket(bad)
    with pytest.raises(Refused, match="Check the key"):
        s3.put(bad, local, file, {})
    with pytest.raises(Refused, match="Check the key"):
        s3.read_digest(bad, "f")


def test_an_outage_is_transient(folder: s3.Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    connection = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"])
    extra = json.loads(connection["extra"])
    extra["endpoint_url"] = "http://127.0.0.1:9"
    extra["config_kwargs"] |= {"connect_timeout": 1, "retries": {"max_attempts": 1}}
    monkeypatch.setenv("AIRFLOW_CONN_MINIO_DOWN", json.dumps(connection | {"extra": json.dumps(extra)}))
    with pytest.raises(Transient, match=r"minio_down.*cannot be reached"):
        s3.require_bucket(dataclasses.replace(folder, hook=S3Hook("minio_down")))


def test_the_console_is_linked_when_the_connection_names_it(services: Services, folder: s3.Folder) -> None:
    assert s3.console_url(folder) == f"{services.context.minio_url}/{folder.bucket}/{folder.prefix}"
