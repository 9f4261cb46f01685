"""Folders in a real S3 store: complete objects, verified bytes, and refusals with a code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider

from airflow_onnx.storage import s3
from onnx_release.errors import Transient
from onnx_release.records import FileDigest
from tests.edge.conftest import Services
from tests.edge.storage.test_policies import POLICIES
from tests.refusals import refused


def write(local: Path, path: str, content: bytes) -> FileDigest:
    (local / path).parent.mkdir(parents=True, exist_ok=True)
    (local / path).write_bytes(content)
    return FileDigest(path=path, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def test_a_large_file_goes_in_parts_and_reads_back(folder: s3.S3Folder, local: Path) -> None:
    file = write(local, "model.onnx.data", bytes(range(256)) * (2 * s3.PART_BYTES // 256 + 1))
    s3.put(folder, local, file, {"training-run-id": "r"})
    assert s3.read_digest(folder, file.path) == file
    head = folder.hook.head_object(folder.key(file.path), folder.bucket)
    assert head is not None
    assert head["ETag"].strip('"').endswith("-3"), "two parts and a bit"
    assert head["Metadata"] == {"training-run-id": "r", "sha256": file.sha256}


MIB = 2**20


@pytest.mark.parametrize(
    "size_bytes", [0, 1, s3.PART_BYTES - 1, s3.PART_BYTES, 2 * s3.PART_BYTES, 2 * s3.PART_BYTES + 1]
)
def test_an_object_that_was_put_is_verified_without_reading_it(
    folder: s3.S3Folder, local: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    monkeypatch.setattr(s3, "read_digest", lambda *_: pytest.fail("the object was read"))
    s3.put(folder, local, write(local, "f", bytes(size_bytes)), {})
    assert s3.sizes(folder) == {"f": size_bytes}


def test_the_part_size_of_the_connection_is_used(folder: s3.S3Folder, local: Path) -> None:
    hook = S3Hook("minio_default", transfer_config_args=s3.TRANSFER_CONFIG | {"multipart_chunksize": 20 * MIB})
    file = write(local, "f", bytes(42 * MIB))
    verified = s3.put(dataclasses.replace(folder, hook=hook), local, file, {})
    assert verified.etag_from_bytes
    assert verified.etag.endswith("-3")


def test_a_multipart_etag_is_the_md5_over_the_md5s_of_the_parts(local: Path) -> None:
    write(local, "f", bytes(3_000_000))
    parts = [hashlib.md5(bytes(size)).digest() for size in (2_000_000, 1_000_000)]
    assert s3.multipart_etag(local / "f", 2_000_000) == f"{hashlib.md5(b''.join(parts)).hexdigest()}-2"


def test_an_object_whose_etag_does_not_come_from_its_bytes_is_read(
    folder: s3.S3Folder, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = s3.VerifiedObject(etag="made by other rules", etag_from_bytes=True)
    monkeypatch.setattr(s3, "expected_object", lambda *_: other)
    file = write(local, "f", b"abc")
    assert not s3.put(folder, local, file, {}).etag_from_bytes
    with pytest.raises(Transient, match=f"reads back as {file.sha256}, not {'0' * 64}"):
        s3.put(folder, local, file.replace(sha256="0" * 64), {})


def test_other_bytes_in_the_store_are_transient(
    folder: s3.S3Folder, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, send = write(local, "f", b"abc"), folder.hook.get_conn().put_object

    def spoiled(Body: object, ChecksumSHA256: str, **arguments: object) -> None:  # noqa: N803 - boto3's names
        send(Body=b"abd", **arguments)

    monkeypatch.setattr(folder.hook.get_conn(), "put_object", spoiled)
    with pytest.raises(Transient, match="reads back as"):
        s3.put(folder, local, file, {})


@pytest.mark.parametrize(
    ("path", "expected"),
    [("report.json", "application/json"), ("MLmodel", "application/yaml"), ("a/b.onnx", "application/octet-stream")],
)
def test_objects_have_the_content_type_of_their_file(
    folder: s3.S3Folder, local: Path, path: str, expected: str
) -> None:
    s3.put(folder, local, write(local, path, b"x"), {})
    head = folder.hook.head_object(folder.key(path), folder.bucket)
    assert head is not None
    assert head["ContentType"] == expected


def test_a_fetched_folder_equals_the_one_that_was_put(folder: s3.S3Folder, local: Path, tmp_path: Path) -> None:
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


def test_a_missing_object_reads_as_none(folder: s3.S3Folder) -> None:
    assert s3.read_digest(folder, "nothing") is None


def test_a_missing_bucket_is_refused_with_its_name_and_connection(administrator: None, folder: s3.S3Folder) -> None:
    with refused("no_bucket", "no-such-bucket", "minio_default"):
        s3.require_bucket(dataclasses.replace(folder, bucket="no-such-bucket"))


def test_an_account_of_one_prefix_passes_the_checks_there_and_only_there(
    services: Services, folder: s3.S3Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = services.context.credentials
    root = StaticProvider(keys.minio_access_key, keys.minio_secret_key)
    admin = MinioAdmin(endpoint=f"127.0.0.1:{services.context.ports.minio}", credentials=root, secure=False)
    policy = (POLICIES / "team-policy.json").read_text().replace("teams/radio", "teams/churn")
    (tmp_path / "policy.json").write_text(policy.replace(":::models", f":::{folder.bucket}"))
    admin.user_add("team", "secret-of-the-team")
    admin.policy_add("team", tmp_path / "policy.json")
    admin.policy_set("team", user="team")
    stored = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"])
    monkeypatch.setenv(
        "AIRFLOW_CONN_MINIO_TEAM", json.dumps(stored | {"login": "team", "password": "secret-of-the-team"})
    )

    own = s3.folder_at("minio_team", f"s3://{folder.bucket}/teams/churn/model/run")
    s3.require_bucket(own)
    s3.require_write_access(own)
    with refused("access_denied", "minio_team"):
        s3.require_bucket(s3.folder_at("minio_team", f"s3://{folder.bucket}/teams/radio/model/run"))


def test_wrong_keys_are_refused_in_every_call(
    folder: s3.S3Folder, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"]) | {"password": "wrong"}
    monkeypatch.setenv("AIRFLOW_CONN_MINIO_WRONG", json.dumps(wrong))
    bad = dataclasses.replace(folder, hook=S3Hook("minio_wrong"))
    file = write(local, "f", b"x")
    with refused("access_denied", "minio_wrong"):
        s3.require_bucket(bad)
    with refused("access_denied"):
        s3.put(bad, local, file, {})
    with refused("access_denied"):
        s3.read_digest(bad, "f")


def test_an_outage_is_transient(folder: s3.S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"])
    extra = json.loads(connection["extra"])
    extra["endpoint_url"] = "http://127.0.0.1:9"
    extra["config_kwargs"] |= {"connect_timeout": 1, "retries": {"max_attempts": 1}}
    monkeypatch.setenv("AIRFLOW_CONN_MINIO_DOWN", json.dumps(connection | {"extra": json.dumps(extra)}))
    with pytest.raises(Transient, match=r"minio_down.*cannot be reached"):
        s3.require_bucket(dataclasses.replace(folder, hook=S3Hook("minio_down")))


def test_the_link_leads_to_the_folder_in_the_console(
    services: Services, folder: s3.S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = services.context.minio_url
    assert s3.console_url(folder) == f"{url}/minio/{folder.bucket}/{folder.prefix}"
    odd = dataclasses.replace(folder, prefix="a b/c")
    for console, expected in (
        ("http://c/browser/{bucket}/{prefix_base64}", f"http://c/browser/{folder.bucket}/YSBiL2M="),
        ("http://c/{bucket}?p={prefix}&{other}", f"http://c/{folder.bucket}?p=a%20b/c&{{other}}"),
        ("http://c/", f"http://c/browser/{folder.bucket}/a%20b/c"),
        ("", f"{url}/{folder.bucket}/a b/c"),
    ):
        monkeypatch.setitem(folder.hook.conn_config.extra_config, "console_url", console)
        assert s3.console_url(odd) == expected


def test_a_text_object_reads_back(folder: s3.S3Folder) -> None:
    s3.put_text(folder, "a.json", '{"é": 1}')
    assert s3.read_text(folder, "a.json") == '{"é": 1}'
    with refused("no_object", "b.json"):
        s3.read_text(folder, "b.json")


def test_an_object_above_the_size_limit_is_refused(folder: s3.S3Folder, local: Path, tmp_path: Path) -> None:
    s3.put(folder, local, write(local, "f.npz", bytes(11)), {})
    assert s3.fetch_one(folder, "f.npz", tmp_path, 11).read_bytes() == bytes(11)
    with refused("object_too_large", "f.npz", "11", "10"):
        s3.fetch_one(folder, "f.npz", tmp_path, 10)


def test_a_copy_of_a_replaced_object_is_refused(folder: s3.S3Folder, local: Path) -> None:
    target = dataclasses.replace(folder, prefix=f"{folder.prefix}copied/")
    file = write(local, "f", b"abc")
    verified = s3.put(folder, local, file, {})
    s3.copy(folder, target, file, verified, {})
    assert s3.read_digest(target, "f") == file
    s3.put(folder, local, write(local, "f", b"abd"), {})
    with refused("object_changed", "'f'"):
        s3.copy(folder, target, file, verified, {})
    assert s3.read_digest(target, "f") == file


def test_the_next_action_for_a_missing_object_names_the_task_that_puts_it(folder: s3.S3Folder, tmp_path: Path) -> None:
    with refused("not_found", "clear the task 'upload'"):
        s3.fetch_one(folder, "f.npz", tmp_path, 1)
    with refused("not_found", "Check the bucket and the path."):
        s3.fetch_one(dataclasses.replace(folder, rerun=None), "f.npz", tmp_path, 1)
