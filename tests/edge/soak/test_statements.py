"""Each statement, with the violation planted on the real servers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from airflow_onnx.hooks.mlflow import MlflowHook
from onnx_release.latency.host_lock import HostLock, LockOptions
from onnx_release.scratch import PREFIX
from onnx_release.training_runs import tags
from soak.airflow_state import AirflowState
from soak.folders import Folders
from soak.statements import Places, violations
from stack.minio import s3_client
from tests.edge.conftest import Services
from tests.edge.releasing import BUCKET, Release

DAG = "release_onnx"


class Seen:
    """The servers of the tests as the statements read them, for one release."""

    def __init__(self, hook: MlflowHook, release: Release, services: Services) -> None:
        self.hook, self.release, self.client = hook, release, hook.client
        self.store = s3_client(services.context)
        self.dag_run = "success"
        self.occupied: dict[str, int] = {}
        self.folders = Folders()

    def violations(self) -> list[tuple[str, str]]:
        """Return kind and text of each violation."""
        state = AirflowState({(DAG, self.release.dag_run_id): self.dag_run}, self.occupied)
        places = Places(store=self.store, bucket=BUCKET, mlflow=self.client, airflow=state, folders=self.folders)
        asked, models = [self.release.training_run_id], [self.release.model_name]
        return [tuple(one) for one in violations(places, asked, models)]

    def one(self, kind: str) -> str:
        """Return the text of the only violation, which is of this kind."""
        found = self.violations()
        assert [each for each, _ in found] == [kind], found
        return found[0][1]

    @property
    def version(self) -> Any:
        return self.client.get_model_version(self.release.model_name, "1")

    def key(self, name: str) -> str:
        return f"{self.version.source.removeprefix(f's3://{BUCKET}/')}/{name}"


@pytest.fixture
def seen(hook: MlflowHook, release: Release, judged: Release, services: Services) -> Seen:
    """A finished release."""
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    found = Seen(hook, release, services)
    assert found.violations() == []
    return found


def test_versions_objects_and_aliases(seen: Seen) -> None:
    first, name = seen.version, seen.release.model_name
    seen.client.create_model_version(name, first.source, first.run_id, tags=first.tags, await_creation_for=0)
    assert "[1, 2]" in seen.one("doubled")
    seen.client.delete_model_version(name, "2")
    seen.client.set_model_version_tag(name, "1", tags.VERSION_STATUS, "registered")
    assert "'registered'" in seen.one("alias")
    seen.client.set_model_version_tag(name, "1", tags.VERSION_STATUS, "released")
    foreign = seen.client.create_model_version(name, "s3://elsewhere/model", await_creation_for=0)
    seen.client.set_registered_model_alias(name, "candidate", foreign.version)
    assert "has no sha256" in seen.one("alias")
    seen.client.set_registered_model_alias(name, "candidate", "1")

    sound = seen.store.get_object(Bucket=BUCKET, Key=seen.key("model.onnx"))["Body"].read()
    for body in (sound[:-1] + bytes([sound[-1] ^ 1]), b""):
        seen.store.put_object(Bucket=BUCKET, Key=seen.key("model.onnx"), Body=body)
        assert "give the sha256" in seen.one("lost")
    seen.store.delete_object(Bucket=BUCKET, Key=seen.key("model.onnx"))
    assert "give the sha256" in seen.one("lost")
    seen.store.put_object(Bucket=BUCKET, Key=seen.key("model.onnx"), Body=sound)
    seen.store.put_object(Bucket=BUCKET, Key=seen.key("extra.bin"), Body=b"1")
    assert "give the sha256" in seen.one("lost")
    seen.store.delete_object(Bucket=BUCKET, Key=seen.key("extra.bin"))
    seen.store.delete_object(Bucket=BUCKET, Key=seen.key("report.json"))
    assert "report.json is missing" in seen.one("lost")


def test_answers_that_are_missing_or_untrue(seen: Seen) -> None:
    run_id = seen.release.training_run_id
    right = seen.client.get_run(run_id).data.tags[tags.SHA256]
    for status, dag_run, words in (
        ("running", "failed", "is not alive"),
        ("failed", "success", "has succeeded"),
        ("", "failed", "no answer"),
    ):
        seen.dag_run = dag_run
        seen.client.set_tag(run_id, tags.STATUS, status)
        seen.client.set_tag(run_id, tags.REASON, "a reason")
        found = seen.violations()
        assert {kind for kind, _ in found} == {"untrue"}
        assert any(words in text for _, text in found), found
    seen.client.set_tag(run_id, tags.STATUS, "running")
    seen.dag_run = "running"
    assert seen.violations() == [], "a release in progress"
    seen.dag_run = "failed"
    seen.client.set_tag(run_id, tags.STATUS, "released")
    seen.client.set_tag(run_id, tags.SHA256, "0" * 64)
    assert "another sha256" in seen.one("untrue")
    seen.client.set_tag(run_id, tags.SHA256, right)
    seen.client.delete_model_version(seen.release.model_name, "1")
    found = seen.violations()
    assert {kind for kind, _ in found} == {"untrue", "orphan"}
    assert any(text.endswith("which does not exist or is not READY.") for _, text in found)


def test_an_upload_a_slot_and_a_lock_that_nothing_names(seen: Seen) -> None:
    key = f"{seen.release.model_name}/{seen.release.training_run_id}/0123456789abcdef/model.onnx"
    seen.store.put_object(Bucket=BUCKET, Key=key, Body=b"1")
    assert key in seen.one("orphan")
    seen.dag_run = "running"
    assert seen.violations() == [], "the release of this training run is in progress"
    seen.dag_run = "failed"
    seen.store.delete_object(Bucket=BUCKET, Key=key)
    seen.occupied = {"onnx_measure": 1}
    assert "onnx_measure" in seen.one("orphan")
    seen.occupied = {}
    name = f"{tags.PROMOTION_LOCK}.0123"
    seen.client.set_registered_model_tag(seen.release.model_name, name, "1")
    assert "is locked" in seen.one("orphan")
    seen.client.delete_registered_model_tag(seen.release.model_name, name)
    upload = seen.store.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    seen.store.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"1")
    assert "multipart" in seen.one("orphan")
    seen.store.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload)
    assert seen.violations() == []


def test_folders_and_locks_that_nothing_names(tmp_path: Path) -> None:
    def work(run_id: str) -> Path:
        return tmp_path / "staging" / hashlib.sha256(f"{DAG}\0{run_id}".encode()).hexdigest()[:24]

    states = {(DAG, name): state for name, state in (("a", "failed"), ("b", "running"), ("c", "success"))}
    for name in ("a", "b", "c", "no DAG run"):
        work(name).mkdir(parents=True)
    folders = Folders(staging=tmp_path / "staging", scratch=tmp_path, lock=tmp_path / "lock")
    found = list(folders.leftovers(AirflowState(states)))
    assert len(found) == 2
    assert all(any(str(work(name)) in text for text in found) for name in ("c", "no DAG run"))
    scratch = tmp_path / f"{PREFIX}1"
    scratch.mkdir()
    (scratch / "owner.lock").touch()
    folders = Folders(scratch=tmp_path, lock=tmp_path / "lock")
    assert [str(scratch) in text for text in folders.leftovers(AirflowState())] == [True]
    with HostLock(LockOptions(path=str(tmp_path / "lock"))).held():
        scratch.rename(tmp_path / "other")
        assert list(folders.leftovers(AirflowState(states))) == [], "a release is in progress"
        assert ["measuring lock" in text for text in folders.leftovers(AirflowState())] == [True]
