"""Releases whose tasks run on workers that share no disk: each has a cache and a temporary folder of its own."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk.exceptions import AirflowFailException

from airflow_onnx.deployment import settings
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import s3, staging, worker_cache
from onnx_release.errors import Refused
from onnx_release.records import FileDigest
from tests.edge.operators.test_refused import pickled_run
from tests.edge.releasing import (
    ORDER,
    Release,
    TwoHeads,
    assert_nothing_left,
    new_release,
    objects_of,
    trained_run,
    versions_of,
)

BUCKET = "heimdall-models"
CACHE = "AIRFLOW__ONNX_RELEASE__CACHE_FOLDER"


class Workers:
    """Gives the next task a worker of its own: nothing of what others fetched, and no folder that they wrote to."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder, self._patch = folder, patch

    def go(self, name: str) -> Path:
        """Be the worker of this name from now on; a name that was there before finds its disk again."""
        here = self._folder / name
        (here / "tmp").mkdir(parents=True, exist_ok=True)
        self._patch.setenv(CACHE, str(here / "cache"))
        self._patch.setattr(tempfile, "tempdir", str(here / "tmp"))
        return here


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workers:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__STAGING_URI", f"s3://{BUCKET}/staging/{tmp_path.name}")
    return Workers(tmp_path / "workers", monkeypatch)


def staged(release: Release) -> list[str]:
    prefix = release.returned["prepare"].removeprefix(f"s3://{BUCKET}/")
    return S3Hook("minio_default").list_keys(BUCKET, prefix=f"{prefix}/") or []


def size_of(release: Release, task: str, path: str) -> int:
    """The size in bytes of one of the files that a task's record names."""
    (size,) = (file["size_bytes"] for file in release.returned[task]["files"] if file["path"] == path)
    return int(size)


class Transfers(Counter[str]):
    """Bytes by kind of transfer: ``put``, ``copy``, ``fetch`` and ``read`` in the store, ``download`` from MLflow."""

    def take(self) -> dict[str, int]:
        """Return the counts and start again from zero."""
        taken = dict(self)
        self.clear()
        return taken


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> Transfers:
    counted = Transfers()
    put, copy, fetch, read, download = s3.put, s3.copy, s3.fetch, s3.read_digest, MlflowHook.download

    def counting_put(folder: s3.Folder, local: Path, file: FileDigest, *more: Any) -> Any:
        counted["put"] += file.size_bytes
        return put(folder, local, file, *more)

    def counting_copy(source: s3.Folder, target: s3.Folder, file: FileDigest, *more: Any) -> Any:
        counted["copy"] += file.size_bytes
        return copy(source, target, file, *more)

    def counting_fetch(folder: s3.Folder, files: Any, target: Path) -> None:
        counted["fetch"] += sum(file.size_bytes for file in files)
        fetch(folder, files, target)

    def counting_read(*arguments: Any) -> FileDigest | None:
        found = read(*arguments)
        counted["read"] += found.size_bytes if found else 0
        return found

    def counting_download(hook: MlflowHook, uri: str, folder: Path) -> Path:
        local = download(hook, uri, folder)
        counted["download"] += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return local

    monkeypatch.setattr(s3, "put", counting_put)
    monkeypatch.setattr(s3, "copy", counting_copy)
    monkeypatch.setattr(s3, "fetch", counting_fetch)
    monkeypatch.setattr(s3, "read_digest", counting_read)
    monkeypatch.setattr(MlflowHook, "download", counting_download)
    return counted


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
    assert artifact["uri"] == f"{release.returned['prepare']}/artifact/{artifact['sha256']}"
    assert sorted(staged(release)) == sorted(
        f"{artifact['uri'].removeprefix(f's3://{BUCKET}/')}/{file['path']}" for file in artifact["files"]
    )
    assert (version["version"], version["alias"]) == (1, "candidate")

    assert by_task["export"]["put"] == size
    assert by_task["check"] == {"fetch": size}
    assert by_task["parity_latency"]["fetch"] == size
    assert by_task["parity_latency"]["download"] == by_task["export"]["download"] > 0
    assert by_task["upload"]["copy"] == size
    report_size = size_of(release, "upload", "report.json")
    assert by_task["upload"]["put"] == report_size, "the artifact went up once, to staging"
    assert "fetch" not in by_task["upload"]
    release.clean()
    assert staged(release) == []
    assert objects_of(release)


def test_on_one_worker_nothing_is_fetched_twice(release: Release, workers: Workers, transfers: Transfers) -> None:
    workers.go("alone")
    release.to("export")
    assert transfers.take()["download"] > 0
    # The export wrote the artifact to a folder that ended with the task, so the check fetches it.
    release.run("check")
    assert transfers.take() == {"fetch": release.returned["export"]["size_bytes"]}
    release.run("parity_latency")
    assert transfers.take() == {}


@pytest.fixture
def staged_release(release: Release, judged: Release, workers: Workers) -> Release:
    """A release that stands after its verdict, with its artifact staged in the store by the export's own means."""
    workers.go("export")
    release.returned = json.loads(json.dumps(judged.returned))
    release.skipped = set(judged.skipped)
    work = staging.at(release.run("prepare"))
    artifact = rendered_artifact(judged)
    release.returned["export"] = work.keep(staging.ARTIFACT, artifact, judged.artifact_folder).to_dict()
    return release


def rendered_artifact(release: Release) -> Any:
    from onnx_release.records import OnnxArtifact

    return OnnxArtifact.from_dict(release.returned["export"])


def overwrite(release: Release, path: str, content: bytes) -> None:
    key = f"{release.returned['export']['uri'].removeprefix(f's3://{BUCKET}/')}/{path}"
    S3Hook("minio_default").get_conn().put_object(Bucket=BUCKET, Key=key, Body=content)


def test_a_second_try_on_another_worker_stages_the_same_once(release: Release, workers: Workers) -> None:
    workers.go("first")
    first = release.to("export")
    objects_before = staged(release)
    workers.go("second")
    assert release.run("export")["uri"] == first["uri"]
    assert staged(release) == objects_before
    assert release.returned["export"]["staged"] == first["staged"]


def test_a_second_release_copies_and_reads_nothing_again(staged_release: Release, transfers: Transfers) -> None:
    staged_release.run("upload", "register", "promote")
    transfers.clear()
    staged_release.run("upload")
    # The report in the store is read for its digest and fetched for its content.
    size = size_of(staged_release, "upload", "report.json")
    assert transfers == {"read": size, "fetch": size}


@pytest.mark.parametrize("size_change", [0, 1])
def test_what_was_overwritten_in_staging_is_never_copied(
    hook: MlflowHook, staged_release: Release, workers: Workers, size_change: int
) -> None:
    size = size_of(staged_release, "export", "model.onnx")
    overwrite(staged_release, "model.onnx", bytes(size + size_change))
    with pytest.raises(AirflowFailException, match=r"model\.onnx.*Somebody has written there.*clear the task 'export'"):
        staged_release.run("upload")
    staged_release.clean()
    assert_nothing_left(hook, staged_release)


@pytest.mark.parametrize("task", ["check", "parity_latency"])
def test_what_was_overwritten_in_staging_is_never_judged(staged_release: Release, workers: Workers, task: str) -> None:
    size = size_of(staged_release, "export", "model.onnx")
    overwrite(staged_release, "model.onnx", bytes(size))
    workers.go(task)
    with pytest.raises(AirflowFailException, match=r"is not what was exported: model\.onnx changed"):
        staged_release.run(task)


def test_an_overwritten_object_that_slips_through_the_copy_is_found_before_mlflow_names_it(
    hook: MlflowHook, staged_release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a store that ignores the condition of a copy."""
    size = size_of(staged_release, "export", "model.onnx")
    overwrite(staged_release, "model.onnx", bytes(size))
    client = S3Hook("minio_default").get_conn()
    key = f"{staged_release.returned['export']['uri'].removeprefix(f's3://{BUCKET}/')}/model.onnx"
    etag = client.head_object(Bucket=BUCKET, Key=key)["ETag"].strip('"')
    staged_release.returned["export"]["staged"]["model.onnx"]["etag"] = etag
    staged_release.run("upload")
    with pytest.raises(AirflowFailException, match=r"model\.onnx changed"):
        staged_release.run("register")
    staged_release.clean()
    assert_nothing_left(hook, staged_release)


@pytest.mark.parametrize("task", ["check", "upload"])
def test_a_lost_object_is_named_with_what_to_do(staged_release: Release, workers: Workers, task: str) -> None:
    folder = staging.at(staged_release.returned["export"]["uri"]).folder  # type: ignore[attr-defined]
    s3.remove(folder, ["model.onnx"])
    workers.go(task)
    with pytest.raises(AirflowFailException, match=r"model\.onnx.*lear the task 'export'"):
        staged_release.run(task)


def test_a_store_whose_etags_say_nothing_is_read_back(staged_release: Release, transfers: Transfers) -> None:
    for file in staged_release.returned["export"]["staged"].values():
        file["by_content"] = False
    size = staged_release.returned["export"]["size_bytes"]
    transfers.clear()
    staged_release.run("upload")
    assert (transfers["copy"], transfers["read"]) == (size, size)


def test_where_staging_is_another_store_the_artifact_is_fetched_and_put(
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


def test_a_damaged_cache_costs_a_fetch_and_changes_nothing(
    staged_release: Release, workers: Workers, transfers: Transfers, caplog: pytest.LogCaptureFixture
) -> None:
    here = workers.go("one")
    staged_release.run("check")
    (model,) = (here / "cache" / "entries").glob("*/model.onnx")
    model.write_bytes(bytes(model.stat().st_size))
    transfers.clear()
    with caplog.at_level(logging.WARNING):
        assert staged_release.run("check")["passed"]
    assert "is damaged; it is fetched again" in caplog.text
    assert transfers == {"fetch": staged_release.returned["export"]["size_bytes"]}


def test_a_cache_that_is_turned_off_leaves_nothing_on_the_worker(
    staged_release: Release, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__CACHE_MAX_BYTES", "0")
    here = workers.go("one")
    staged_release.run("check", "parity_latency", "upload", "register", "promote")
    # The measuring's lock belongs to the host, and stays for whoever measures next.
    assert [str(path) for path in (here / "tmp").iterdir()] == [settings.measure_lock()]
    assert not (here / "cache").exists()


@pytest.mark.parametrize("text", ["-1", "10 GiB", "", "1.5"])
def test_a_limit_that_is_no_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__CACHE_MAX_BYTES", text)
    with pytest.raises(Refused, match="cache_max_bytes"):
        settings.cache_max_bytes()


def test_a_logged_model_is_found_again_by_another_release(
    hook: MlflowHook, run_id: str, workers: Workers, transfers: Transfers
) -> None:
    workers.go("one")
    uri = new_release(run_id).to("wait")["model_uri"]
    with worker_cache.trained_model(hook, uri) as first:
        assert (first.path / "MLmodel").is_file()
    assert transfers.take()["download"] > 0
    with worker_cache.trained_model(hook, uri) as second:
        assert second == first
    assert transfers.take() == {}


def test_where_pickles_run_what_the_cache_says_of_a_name_is_not_believed(
    hook: MlflowHook, run_id: str, workers: Workers, transfers: Transfers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE", "True")
    workers.go("one")
    uri = new_release(run_id).to("wait")["model_uri"]
    for _ in range(2):
        with worker_cache.trained_model(hook, uri) as found:
            assert transfers.take()["download"] > 0
    with worker_cache.trained_model(hook, uri, found.sha256):
        assert transfers.take() == {}, "a digest from the release's own records is found"


def test_a_file_of_a_run_that_is_written_again_is_never_taken_for_the_old_one(
    hook: MlflowHook, workers: Workers, tmp_path: Path
) -> None:
    workers.go("one")
    with mlflow.start_run() as run:
        log_weights(tmp_path, seed=1)
        uri = f"runs:/{run.info.run_id}/weights.pt"
        with worker_cache.trained_model(hook, uri) as before:
            content = before.path.read_bytes()
        log_weights(tmp_path, seed=2)
        with worker_cache.trained_model(hook, uri) as after:
            assert len(after.path.read_bytes()) == len(content), "the listing looks the same"
            assert after.path.read_bytes() != content
        workers.go("two")
        with (
            pytest.raises(Refused, match="has other bytes than before"),
            worker_cache.trained_model(hook, uri, before.sha256),
        ):
            pytest.fail("was handed out")


def log_weights(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    torch.save(TwoHeads().state_dict(), folder / "weights.pt")
    mlflow.log_artifact(str(folder / "weights.pt"))


def test_a_pickled_model_with_its_own_code_leaves_its_cached_copy_as_it_was(
    hook: MlflowHook, workers: Workers, transfers: Transfers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE", "True")
    code = tmp_path / "own_code" / "own_net.py"
    code.parent.mkdir()
    code.write_text("from tests.edge.releasing import TwoHeads\n\n\nclass OwnNet(TwoHeads):\n    pass\n")
    with monkeypatch.context() as training:
        training.syspath_prepend(str(code.parent))
        own_net = importlib.import_module("own_net")
        release = new_release(pickled_run(own_net.OwnNet(), code_paths=[str(code)]))
        monkeypatch.delitem(sys.modules, "own_net")
    workers.go("one")
    release.to("check")
    transfers.clear()
    release.run("parity_latency")
    assert transfers == {}, "Python wrote no bytecode beside the code"


def test_old_work_goes_and_what_is_not_ours_stays(workers: Workers, tmp_path: Path) -> None:
    root = settings.staging_uri()
    folder = s3.folder_at("minio_default", root)
    old, new = staging.work_uri(root, "d", "old"), staging.work_uri(root, "d", "new")
    (tmp_path / "f").write_bytes(b"x")
    (file,) = [f for f in _described(tmp_path) if f.path == "f"]
    for prefix in (old, f"{old}/artifact/sha", f"{root}/somebody-else", root):
        s3.put(s3.folder_at("minio_default", prefix), tmp_path, file, {})
    staging.at(new).prepare(keep_s=3600)
    assert len(s3.sizes(folder)) == 4, "they are young"
    staging.at(old).prepare(keep_s=-1)
    assert len(s3.sizes(folder)) == 4, "a release does not sweep its own"
    staging.at(new).prepare(keep_s=-1)
    assert sorted(s3.sizes(folder)) == ["f", "somebody-else/f"]


def _described(folder: Path) -> Any:
    from onnx_release.artifact.digests import describe_folder

    return describe_folder(folder)


def test_only_a_work_folder_can_be_removed(workers: Workers) -> None:
    with pytest.raises(Refused, match="none that this package makes"):
        staging.at(settings.staging_uri()).remove()


@pytest.mark.parametrize("uri", ["ftp://host/x", "/plain/path", "s3://B_D/x", "file://host/x"])
def test_a_staging_folder_of_another_kind_is_refused(uri: str, connections: None) -> None:
    with pytest.raises(Refused):
        staging.at(f"{uri}/{'0' * 24}").prepare(1.0)


def test_a_missing_bucket_is_refused_before_anything_is_exported(
    release: Release, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__STAGING_URI", "s3://no-such-bucket/staging")
    with pytest.raises(AirflowFailException, match="Create the bucket"):
        release.to("prepare")


def test_a_tuned_model_is_staged_beside_the_exported_one(hook: MlflowHook, workers: Workers) -> None:
    from tests.edge.operators.test_tune import INT8, Wide

    release = new_release(trained_run(run_name="wide", module=Wide()))
    release.params["tune"] = INT8
    assert run_on_separate_workers(release, workers, "promote")["alias"] == "candidate-int8"
    tuned = release.returned["tune"]
    assert tuned["uri"] == f"{release.returned['prepare']}/tuned/{tuned['sha256']}"
    assert set(tuned["staged"]) == {file["path"] for file in tuned["files"]}
    assert tuned["trained_sha256"] == release.returned["export"]["trained_sha256"] != ""
    assert len(versions_of(hook, release)) == 1
