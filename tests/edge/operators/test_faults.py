"""Faults on the way to the servers: damaged bytes, and an outage after the alias has moved."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest

from airflow_onnx.events.model_assets import RECORDED_PROMOTIONS, RELEASED_VERSIONS
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import worker_cache
from onnx_release.errors import TrainedModelRefused, Transient
from soak.fault_proxy import Fault, Plan, proxy
from tests.edge.conftest import Led, Services
from tests.edge.releasing import CONSUMED, Release, assert_nothing_left, objects_of, tags_of, versions_of
from tests.refusals import failed


class Flips:
    """Fault that flips a bit in the downloads of one file."""

    def __init__(self, name: str, downloads: int, *, same: bool = True) -> None:
        self.name, self.downloads, self.same = name, downloads, same

    def __call__(self, method: str, path: str, status: int, body: bytes) -> tuple[int, bytes]:
        if method == "GET" and path.partition("?")[0].endswith(self.name) and body and self.downloads:
            self.downloads -= 1
            place = len(body) // 2 + (0 if self.same else self.downloads)
            body = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
        return status, body


def test_a_bit_that_flips_on_the_way_is_fetched_again(
    hook: MlflowHook, release: Release, judged: Release, services: Services, led: Led
) -> None:
    release.after(judged, "parity_latency").run("upload")
    flips = Flips("model.onnx", 1)
    with proxy(services.context.minio_url, flips) as address:
        led("minio_default", address)
        assert release.run("register")["version"] == 1
    assert flips.downloads == 0


def test_a_file_that_differs_twice_in_two_ways_is_tried_again_and_nothing_is_deleted(
    hook: MlflowHook, release: Release, judged: Release, services: Services, led: Led
) -> None:
    release.after(judged, "parity_latency").run("upload")
    before = objects_of(release)
    with proxy(services.context.minio_url, Flips("model.onnx", 2, same=False)) as address:
        led("minio_default", address)
        with pytest.raises(Transient, match=f"s3://.*{release.model_name}.*/model.onnx is damaged on its way"):
            release.run("register")
        assert objects_of(release) == before
        assert release.run("register")["version"] == 1


def test_a_file_that_differs_twice_in_the_same_way_is_refused_by_its_name(
    hook: MlflowHook, release: Release, judged: Release, services: Services, led: Led
) -> None:
    release.after(judged, "parity_latency").run("upload")
    with proxy(services.context.minio_url, Flips("model.onnx", 2)) as address:
        led("minio_default", address)
        with failed("object_changed", f"{release.returned['upload']['uri']}/model.onnx", "Clear the task 'upload'"):
            release.run("register")
    led("minio_default", services.context.minio_url)
    release.clean()
    assert_nothing_left(hook, release)


def test_a_model_that_was_damaged_on_its_way_is_not_refused_and_not_kept(
    hook: MlflowHook, release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__CACHE_FOLDER", str(tmp_path / "cache"))
    uri = release.run("wait")["model_uri"]
    with worker_cache.trained_model(hook, uri) as sound:
        pass
    damaged = TrainedModelRefused("The model", "is damaged", "Log it again.", code="load_failed")
    worker_cache.require_sound(hook, uri, damaged, sound.sha256)
    other = TrainedModelRefused("The model", "is a pickle", "Log it again.", code="pickle")
    worker_cache.require_sound(hook, uri, other, "0" * 64)
    (key,) = (tmp_path / "cache" / "keys").iterdir()
    with pytest.raises(Transient, match="was damaged on its way: two downloads differ"):
        worker_cache.require_sound(hook, uri, damaged, "0" * 64)
    assert not key.exists()


def test_a_request_for_a_version_that_is_carried_out_after_its_repetition_leaves_one_version(
    hook: MlflowHook, release: Release, judged: Release, services: Services, led: Led
) -> None:
    release.after(judged, "parity_latency").run("upload")
    plan = Plan()
    with proxy(services.context.mlflow_url, plan=plan) as address:
        led("mlflow_default", address)
        late = plan.add(Fault(kind="late", path="/model-versions/create", seconds=20.0))
        with suppress(Transient):
            release.run("register")
        if "register" not in release.returned:
            release.run("register")
        led("mlflow_default", services.context.mlflow_url)
        end = time.monotonic() + 60.0
        while len(versions_of(hook, release)) < 2 and time.monotonic() < end:
            time.sleep(0.2)
        assert (late.injected, len(versions_of(hook, release))) == (1, 2)
    assert release.run("promote")["version"] == 1
    (left,) = versions_of(hook, release)
    assert (left.version, tags_of(hook, release.training_run_id)["version"]) == ("1", "1")


def test_an_outage_after_the_alias_has_moved_ends_as_released(
    hook: MlflowHook, release: Release, judged: Release, services: Services, led: Led
) -> None:
    release.after(judged, "parity_latency").run("upload", "register")
    moved: list[str] = []

    def fault(method: str, path: str, status: int, body: bytes) -> tuple[int, bytes]:
        if method == "POST" and path.endswith("/registered-models/alias"):
            moved.append(path)
        return (500, b"{}") if moved and path.endswith("/runs/log-batch") else (status, body)

    with proxy(services.context.mlflow_url, fault) as address:
        led("mlflow_default", address)
        with pytest.raises(Transient):
            release.run("promote")
        assert moved
        with pytest.raises(Transient):
            release.clean()
    assert objects_of(release)
    led("mlflow_default", services.context.mlflow_url)
    release.clean()
    found = tags_of(hook, release.training_run_id)
    assert (found["status"], found["version"], found["alias"]) == ("released", "1", "candidate")
    assert "the promotion did not end" in found["alias_note"]
    (event,) = release.events[RELEASED_VERSIONS].asset_alias_events
    assert event.dest_asset_key.name == f"models:/{release.model_name}@candidate"
    (event,) = release.events[RECORDED_PROMOTIONS].asset_alias_events
    assert event.dest_asset_key.name == CONSUMED.name
    assert release.run("promote")["alias"] == "candidate"
    assert tags_of(hook, release.training_run_id)["alias_note"] == ""
