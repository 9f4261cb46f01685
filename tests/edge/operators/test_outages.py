"""Outages and refusals of servers: retries, failures without a retry, and the clean-up."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_onnx.hooks.mlflow import MlflowHook
from onnx_release.errors import Transient
from onnx_release.latency.host_lock import HostLock, LockOptions
from tests.edge.conftest import Services
from tests.edge.releasing import (
    Release,
    assert_nothing_left,
    assert_refused,
    objects_of,
)
from tests.refusals import failed


def test_an_outage_of_the_store_is_retried_and_leaves_nothing(
    hook: MlflowHook, release: Release, judged: Release, services: Services
) -> None:
    release.after(judged, "parity_latency")
    services.stop("minio")
    try:
        with pytest.raises(Transient, match="cannot be reached"):
            release.run("upload")
    finally:
        services.start("minio")
    assert_nothing_left(hook, release)
    assert release.run("upload", "register", "promote")["version"] == 1


def test_an_outage_of_mlflow_is_retried_and_the_clean_up_waits_for_it(
    hook: MlflowHook, release: Release, judged: Release, services: Services
) -> None:
    release.after(judged, "parity_latency").run("upload")
    services.stop("mlflow")
    try:
        with pytest.raises(Transient):
            release.run("register")
        with pytest.raises(Transient):
            release.clean()
    finally:
        services.start("mlflow")
    assert objects_of(release), "MLflow was down: a version could name them"
    release.clean()
    assert_nothing_left(hook, release)


def test_a_registry_that_refuses_the_source_is_explained_and_leaves_nothing(
    hook: MlflowHook, release: Release, judged: Release, services: Services
) -> None:
    release.after(judged, "parity_latency").run("upload")
    services.stop("mlflow")
    services.start("mlflow", MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX="^s3://elsewhere/.*$")
    try:
        with pytest.raises(AirflowFailException, match="SOURCE_VALIDATION_REGEX"):
            release.run("register")
        release.clean()
    finally:
        services.stop("mlflow")
        services.start("mlflow")
    assert_refused(hook, release, "heimdall-models")
    assert_nothing_left(hook, release)


def test_the_clean_up_leaves_objects_that_a_version_names(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.after(judged, "parity_latency").run("upload", "register")
    release.clean()
    assert objects_of(release)
    assert release.run("promote")["alias"] == "candidate"


def test_wrong_keys_are_refused(
    hook: MlflowHook, release: Release, judged: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.after(judged, "parity_latency")
    wrong = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"]) | {"password": "wrong"}
    with monkeypatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_MINIO_DEFAULT", json.dumps(wrong))
        with failed("access_denied"):
            release.run("upload")
    release.clean()
    assert_nothing_left(hook, release)


def test_a_missing_bucket_is_refused(hook: MlflowHook, release: Release, judged: Release, administrator: None) -> None:
    release.params["bucket"] = "no-such-bucket"
    with failed("no_bucket", "no-such-bucket"):
        release.after(judged, "parity_latency").run("upload")
    release.clean()
    assert_refused(hook, release, "no-such-bucket")
    assert_nothing_left(hook, release)


def test_a_host_that_another_release_measures_on_is_waited_for_and_tried_again(
    hook: MlflowHook, release: Release, judged: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "measure.lock"
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__MEASURE_LOCK", str(lock))
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__MEASURE_LOCK_TIMEOUT_S", "0.2")
    release.after(judged, "check")
    with (
        HostLock(LockOptions(path=str(lock), holder="the release of another")).held(),
        pytest.raises(Transient, match=r"0.2 s.*the release of another"),
    ):
        release.run("parity_latency")
    assert release.run("parity_latency")["passed"] is True
    told = json.loads(lock.read_text())
    assert told["holder"] == f"{release.dag_run_id}, task parity_latency"
