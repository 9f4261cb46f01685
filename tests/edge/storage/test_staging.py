"""Releases whose tasks run on workers that share no disk: each has its own cache and temporary folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from airflow_onnx.deployment import settings
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import s3, staging
from onnx_release.errors import Refused
from onnx_release.records import FileDigest
from tests.edge.releasing import (
    ORDER,
    Release,
    assert_nothing_left,
    new_release,
    objects_of,
    trained_run,
    versions_of,
)
from tests.edge.storage.workers import BUCKET, Transfers, Workers
from tests.refusals import failed, refused


def staged(release: Release) -> list[str]:
    prefix = release.returned["prepare"].removeprefix(f"s3://{BUCKET}/")
    return S3Hook("minio_default").list_keys(BUCKET, prefix=f"{prefix}/") or []


def size_of(release: Release, task: str, path: str) -> int:
    """Return the size in bytes of one file in a task's record."""
    (size,) = (file["size_bytes"] for file in release.returned[task]["files"] if file["path"] == path)
    return int(size)


def run_on_separate_workers(release: Release, workers: Workers, last: str) -> Any:
    """Run all tasks up to `last`, each on another worker, and return the record of the last one."""
    for name in ORDER[: ORDER.index(last) + 1]:
        workers.go(name)
        release.run(name)
    return release.returned[last]


def test_a_release_whose_tasks_share_no_disk(release: Release, workers: Workers, transfers: Transfers) -> None:
    by_task = {}
    for name in ORDER:
        workers.go(name)
        release.run(name)
        by_task[name] = transfers.take()
    version = release.returned["promote"]
    artifact = release.returned["export"]
    size = artifact["size_bytes"]
    assert artifact["staging_uri"] == f"{release.returned['prepare']}/artifact/{artifact['sha256']}"
    key = artifact["staging_uri"].removeprefix(f"s3://{BUCKET}/")
    files = [f"{key}/{file['path']}" for file in artifact["files"]]
    assert sorted(staged(release)) == sorted([*files, f"{key}.objects.json"])
    assert (version["version"], version["alias"]) == (1, "candidate")

    assert by_task["export"]["put"] == size
    assert by_task["check"] == {"fetch": size}
    assert by_task["parity_latency"]["fetch"] == size
    assert by_task["parity_latency"]["download"] == by_task["export"]["download"] > 0
    assert by_task["upload"]["copy"] == size
    report_size = size_of(release, "upload", "report.json")
    assert by_task["upload"]["put"] == report_size, "the artifact went up once, to staging"
    assert "fetch" not in by_task["upload"]
    final = s3.folder_at("minio_default", release.returned["upload"]["uri"])
    assert release.returned["prepare"] not in s3.read_text(final, "report.json"), "the staged folder is not published"
    release.clean()
    assert staged(release) == []
    assert objects_of(release)


def test_on_one_worker_nothing_is_fetched_twice(release: Release, workers: Workers, transfers: Transfers) -> None:
    workers.go("alone")
    release.to("export")
    assert transfers.take()["download"] > 0
    for name in ("check", "parity_latency"):
        release.run(name)
        assert transfers.take() == {}


def overwrite(release: Release, path: str, content: bytes) -> str:
    """Replace a staged file and return the new object's ETag."""
    key = f"{release.returned['export']['staging_uri'].removeprefix(f's3://{BUCKET}/')}/{path}"
    answer = S3Hook("minio_default").get_conn().put_object(Bucket=BUCKET, Key=key, Body=content)
    return str(answer["ETag"].strip('"'))


def staged_objects(release: Release) -> tuple[s3.S3Folder, str]:
    """Return the folder and the path of the record of the staged objects."""
    parent, _, sha256 = release.returned["export"]["staging_uri"].rpartition("/")
    return s3.folder_at("minio_default", parent), f"{sha256}.objects.json"


def test_a_second_try_on_another_worker_stages_the_same_once(release: Release, workers: Workers) -> None:
    workers.go("first")
    first = release.to("export")
    objects_before = staged(release)
    workers.go("second")
    record = s3.read_text(*staged_objects(release))
    assert release.run("export")["staging_uri"] == first["staging_uri"]
    assert staged(release) == objects_before
    assert s3.read_text(*staged_objects(release)) == record


def test_a_second_release_copies_and_reads_nothing_again(staged_release: Release, transfers: Transfers) -> None:
    staged_release.run("upload", "register", "promote")
    transfers.clear()
    staged_release.run("upload")
    # The report in the store is read for its digest and fetched for its content.
    size = size_of(staged_release, "upload", "report.json")
    assert transfers == {"read": size, "fetch": size}


@pytest.mark.parametrize("size_change", [0, 1])
def test_an_overwritten_staged_object_is_never_copied(
    hook: MlflowHook, staged_release: Release, workers: Workers, size_change: int
) -> None:
    size = size_of(staged_release, "export", "model.onnx")
    overwrite(staged_release, "model.onnx", bytes(size + size_change))
    with failed("object_changed", "model.onnx", "clear the task 'export'"):
        staged_release.run("upload")
    staged_release.clean()
    assert_nothing_left(hook, staged_release)


@pytest.mark.parametrize("task", ["check", "parity_latency"])
def test_an_overwritten_staged_object_is_never_tested(staged_release: Release, workers: Workers, task: str) -> None:
    size = size_of(staged_release, "export", "model.onnx")
    overwrite(staged_release, "model.onnx", bytes(size))
    workers.go(task)
    with failed("object_changed", "/model.onnx changed"):
        staged_release.run(task)


def test_an_overwritten_object_that_the_store_copies_is_refused_before_its_registration(
    hook: MlflowHook, staged_release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a store that ignores the condition of a copy, or a writer who replaces both objects."""
    etag = overwrite(staged_release, "model.onnx", bytes(size_of(staged_release, "export", "model.onnx")))
    folder, path = staged_objects(staged_release)
    record = json.loads(s3.read_text(folder, path))
    record["objects"]["model.onnx"]["etag"] = etag
    s3.put_text(folder, path, json.dumps(record))
    staged_release.run("upload")
    with failed("object_changed", "/model.onnx changed"):
        staged_release.run("register")
    staged_release.clean()
    assert_nothing_left(hook, staged_release)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"objects": {}}'])
def test_a_damaged_record_of_the_staged_objects_is_refused(staged_release: Release, text: str) -> None:
    s3.put_text(*staged_objects(staged_release), text)
    with failed("staging_record", "model.onnx", "Clear the task 'export'"):
        staged_release.run("upload")


@pytest.mark.parametrize(("task", "code"), [("check", "not_staged"), ("upload", "not_found")])
def test_a_missing_staged_object_is_named_with_the_next_action(
    staged_release: Release, workers: Workers, task: str, code: str
) -> None:
    s3.remove(s3.folder_at("minio_default", staged_release.returned["export"]["staging_uri"]), ["model.onnx"])
    workers.go(task)
    with failed(code, "model.onnx", "lear the task 'export'"):
        staged_release.run(task)


def test_a_copy_is_read_back_if_etags_do_not_come_from_the_bytes(staged_release: Release, transfers: Transfers) -> None:
    folder, path = staged_objects(staged_release)
    record = json.loads(s3.read_text(folder, path))
    for stored in record["objects"].values():
        stored["etag_from_bytes"] = False
    s3.put_text(folder, path, json.dumps(record))
    size = staged_release.returned["export"]["size_bytes"]
    transfers.clear()
    staged_release.run("upload")
    assert (transfers["copy"], transfers["read"]) == (size, size)


def test_an_artifact_staged_in_another_store_is_fetched_and_put(
    staged_release: Release, workers: Workers, transfers: Transfers, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"])
    extra = json.loads(connection["extra"])
    extra["endpoint_url"] = extra["endpoint_url"].replace("127.0.0.1", "localhost")
    monkeypatch.setenv("AIRFLOW_CONN_ELSEWHERE", json.dumps(connection | {"extra": json.dumps(extra)}))
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__STAGING_CONN_ID", "elsewhere")
    workers.go("upload")
    transfers.clear()
    staged_release.run("upload")
    size = staged_release.returned["export"]["size_bytes"]
    assert transfers["fetch"] == size
    assert transfers["put"] > size
    assert "copy" not in transfers
    assert staged_release.run("register", "promote")["version"] == 1


def test_old_work_folders_are_deleted_and_other_folders_stay(workers: Workers, tmp_path: Path) -> None:
    root = settings.staging_uri()
    folder = s3.folder_at("minio_default", root)
    old, new = staging.work_folder_uri(root, "d", "old"), staging.work_folder_uri(root, "d", "new")
    (tmp_path / "f").write_bytes(b"x")
    file = FileDigest(path="f", sha256=hashlib.sha256(b"x").hexdigest(), size_bytes=1)
    for prefix in (old, f"{old}/artifact/sha", f"{root}/somebody-else", root):
        s3.put(s3.folder_at("minio_default", prefix), tmp_path, file, {})
    staging.open_staging(new).prepare(keep_s=3600)
    assert len(s3.sizes(folder)) == 4, "they are young"
    staging.open_staging(old).prepare(keep_s=-1)
    assert len(s3.sizes(folder)) == 4, "a release does not delete its own"
    staging.open_staging(new).prepare(keep_s=-1)
    assert sorted(s3.sizes(folder)) == ["f", "somebody-else/f"]


def test_only_a_work_folder_can_be_removed(workers: Workers) -> None:
    with refused("not_a_work_folder"):
        staging.open_staging(settings.staging_uri()).remove()


@pytest.mark.parametrize("uri", ["ftp://host/x", "/plain/path", "s3://B_D/x", "file://host/x"])
def test_a_staging_folder_of_another_kind_is_refused(uri: str, connections: None) -> None:
    with pytest.raises(Refused, match=r"B_D|staging folder"):
        staging.open_staging(f"{uri}/{'0' * 24}").prepare(1.0)


def test_a_missing_bucket_is_refused_before_the_export(
    release: Release, workers: Workers, administrator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__STAGING_URI", "s3://no-such-bucket/staging")
    with failed("no_bucket", "no-such-bucket"):
        release.to("prepare")


def test_a_tuned_model_is_staged_beside_the_exported_one(
    hook: MlflowHook, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.core.tuning.tuned_models import time_by_size
    from tests.edge.operators.test_tune import INT8, Wide

    time_by_size(monkeypatch)
    release = new_release(trained_run(run_name="wide", module=Wide()))
    release.params["tune"] = INT8
    assert run_on_separate_workers(release, workers, "promote")["alias"] == "candidate-int8"
    tuned = release.returned["tune"]
    assert tuned["staging_uri"] == f"{release.returned['prepare']}/tuned/{tuned['sha256']}"
    assert tuned["trained_sha256"] == release.returned["export"]["trained_sha256"] is not None
    assert len(versions_of(hook, release)) == 1


def test_an_artifact_that_was_never_staged_is_refused() -> None:
    with refused("not_staged"):
        staging.open_staging(None)
