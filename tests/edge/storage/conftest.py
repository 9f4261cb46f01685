"""Fixtures: workers that share no disk, and a release whose artifact is staged in the store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import s3, staging
from onnx_release.records import FileDigest, OnnxArtifact
from tests.edge.releasing import (
    Release,
)
from tests.edge.storage.workers import BUCKET, Transfers, Workers


@pytest.fixture
def workers(connections: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workers:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__STAGING_URI", f"s3://{BUCKET}/staging/{tmp_path.name}")
    return Workers(tmp_path / "workers", monkeypatch)


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> Transfers:
    counted = Transfers()
    put, copy, fetch, read, download = s3.put, s3.copy, s3.fetch, s3.read_digest, MlflowHook.download

    def counting_put(folder: s3.S3Folder, local: Path, file: FileDigest, *more: Any, **named: Any) -> Any:
        counted["put"] += file.size_bytes
        return put(folder, local, file, *more, **named)

    def counting_copy(source: s3.S3Folder, target: s3.S3Folder, file: FileDigest, *more: Any) -> Any:
        counted["copy"] += file.size_bytes
        return copy(source, target, file, *more)

    def counting_fetch(folder: s3.S3Folder, files: Any, target: Path) -> None:
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


@pytest.fixture
def staged_release(release: Release, judged: Release, workers: Workers, tmp_path: Path) -> Release:
    """A release after its verdict, with its artifact staged in the store as the export does it."""
    workers.go("export")
    release.returned = json.loads(json.dumps(judged.returned))
    release.returned["wait"]["model_name"] = release.model_name
    release.skipped = set(judged.skipped)
    work = staging.open_staging(release.run("prepare"))
    artifact = OnnxArtifact.from_dict(judged.returned["export"])
    # Staging moves the folder.
    written = shutil.copytree(judged.artifact_folder, tmp_path / "written")
    release.returned["export"] = work.stage(staging.ARTIFACT, artifact, written).to_dict()
    return release
