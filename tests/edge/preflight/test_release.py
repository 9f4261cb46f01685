"""Checks before the export: bucket, keys, packages and files, in one message."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from airflow_onnx import dag_runs, validation
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.preflight import packages
from airflow_onnx.preflight import release as preflight
from airflow_onnx.preflight.store import MARK, StoreProbe
from airflow_onnx.storage import s3
from airflow_onnx.tracking import release_inputs
from onnx_release.records import TensorSpec
from tests.edge.conftest import Services
from tests.edge.releasing import Release, assert_refused, tags_of
from tests.refusals import failed, refused


@pytest.fixture
def waiting(release: Release) -> Release:
    """A release whose training run has ended."""
    release.run("wait")
    return release


def test_a_right_release_passes_and_leaves_no_object(waiting: Release, hook: MlflowHook, tmp_path: Path) -> None:
    name = f"{waiting.model_name}.npz"
    put(name, archive(signal=np.zeros((2, 8), np.float32)))
    waiting.params["inputs_uri"] = f"s3://heimdall-models/test/{name}"
    assert waiting.run("prepare").startswith("file://")
    assert s3.sizes(s3.folder_at("minio_default", f"s3://heimdall-models/{waiting.model_name}")) == {}
    np.savez(tmp_path / "inputs.npz", signal=np.zeros((2, 8), np.float32))
    # The fluent API would end the run again, later.
    hook.client.log_artifact(waiting.training_run_id, str(tmp_path / "inputs.npz"), "folder")
    waiting.params["inputs_uri"] = f"runs:/{waiting.training_run_id}/folder/inputs.npz"
    waiting.run("prepare")


@pytest.mark.parametrize("is_uploaded", [True, False])
def test_the_objects_of_a_killed_check_are_removed_by_the_upload_or_the_tear_down(
    judged: Release, hook: MlflowHook, is_uploaded: bool
) -> None:
    uri = validation.run_folder_uri("heimdall-models", "", judged.model_name, judged.training_run_id)
    killed = StoreProbe("minio_default", uri, dag_runs.owner(judged.context))
    other = StoreProbe("minio_default", uri, "release_onnx another DAG run")
    for probe in (killed, other):
        probe.put()
    client = killed.folder.hook.get_conn()
    key = killed.folder.key(killed.name)
    client.create_multipart_upload(Bucket="heimdall-models", Key=key)
    if is_uploaded:
        judged.run("upload")
    else:
        judged.clean()
    left = [path for path in s3.sizes(killed.folder) if path.startswith(MARK)]
    assert left == [other.name]
    assert not client.list_multipart_uploads(Bucket="heimdall-models", Prefix=key).get("Uploads")
    other.clean()


def test_all_problems_are_in_one_message(waiting: Release, hook: MlflowHook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "PACKAGES", ("torch", "no_such_package", "nor_this_one"))
    waiting.params["bucket"] = "no-such-bucket"
    waiting.params["inputs_uri"] = f"runs:/{waiting.training_run_id}/inputs.npz"
    words = ("no_such_package, nor_this_one", "no-such-bucket", "inputs.npz", "3 problems")
    with failed("missing_package", *words):
        waiting.run("prepare")
    waiting.clean()
    tags = tags_of(hook, waiting.training_run_id)
    assert (tags["status"], tags["reason_code"]) == ("failed", "missing_package")
    assert "nor_this_one" in tags["reason"]


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("s3://heimdall-models/no/such.npz", "not_found"),
        ("runs:/{run}/no/such.npz", "not_found"),
        ("runs:/{other}/x.npz", "not_found"),
        ("s3://heimdall-models/x.txt", "inputs_uri_form"),
        ("/etc/passwd", "inputs_uri_form"),
        ("models:/http://169.254.169.254/x.npz", "inputs_uri_form"),
        ("models:/m-0123456789abcdef/x.npz", "inputs_uri_form"),
        ("runs:/{run}/../../x.npz", "inputs_uri_form"),
        ("mlflow-artifacts://other-host/x.npz", "inputs_uri_form"),
        ("http://169.254.169.254/x.npz", "inputs_uri_form"),
        ("models:/no-such-model/1/x.npz", "not_found"),
        ("s3://mlflow/x.npz", "inputs_bucket"),
        ("s3://heimdall-models@mlflow/x.npz", "inputs_bucket"),
        ("s3://mlflow/../heimdall-models/x.npz", "inputs_bucket"),
    ],
)
def test_a_file_that_does_not_exist_is_refused_before_the_export(
    waiting: Release, hook: MlflowHook, administrator: None, uri: str, code: str
) -> None:
    waiting.params["inputs_uri"] = uri.format(run=waiting.training_run_id, other="0" * 32)
    with failed(code):
        waiting.run("prepare")
    assert_refused(hook, waiting)


@pytest.mark.parametrize(
    "content",
    [b"npz", b"", "objects", "no arrays", "other files"],
    ids=["text", "empty", "objects", "no-arrays", "other-files"],
)
def test_a_file_that_is_not_an_archive_of_arrays_is_refused_before_the_export(
    waiting: Release, hook: MlflowHook, content: bytes | str
) -> None:
    name = f"{waiting.model_name}.npz"
    if content == "objects":
        content = archive(signal=np.array([{}], dtype=object))
    elif content == "no arrays":
        content = archive()
    elif isinstance(content, str):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as other:
            other.writestr("signal.txt", "1")
        content = stream.getvalue()
    put(name, content)
    waiting.params["inputs_uri"] = f"s3://heimdall-models/test/{name}"
    with failed("unreadable_npz", "inputs_uri", "numpy.savez"):
        waiting.run("prepare")


def test_a_file_in_a_bucket_that_the_deployment_allows_is_looked_for(
    waiting: Release, administrator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__INPUTS_BUCKETS", "samples, no-such-bucket")
    waiting.params["inputs_uri"] = "s3://no-such-bucket/x.npz"
    with failed("not_found"):
        waiting.run("prepare")


def test_a_file_with_other_names_than_the_signature_is_refused_before_the_export(waiting: Release) -> None:
    name = f"{waiting.model_name}.npz"
    put(name, archive(sginal=np.ones((2, 8), np.float32)))
    waiting.params["inputs_uri"] = f"s3://heimdall-models/test/{name}"
    with failed("example_mismatch", "lacks the input 'signal'", "has 'sginal'"):
        waiting.run("prepare")


def test_targets_of_an_evaluation_sample_are_no_inputs() -> None:
    arrays = [TensorSpec(name=name, dtype="float32", shape=(2, 8)) for name in ("signal", "target.positions")]
    release_inputs.require_names(arrays, ["signal"], "evaluation_uri", "s3://b/e.npz")
    with refused("example_mismatch", "target.positions"):
        release_inputs.require_names(arrays, ["signal"], "inputs_uri", "s3://b/e.npz")


def put(name: str, content: bytes) -> None:
    S3Hook("minio_default").load_bytes(content, f"test/{name}", "heimdall-models", replace=True)


def archive(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def test_wrong_keys_are_refused_before_the_export(waiting: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"]) | {"password": "wrong"}
    monkeypatch.setenv("AIRFLOW_CONN_MINIO_DEFAULT", json.dumps(wrong))
    with failed("access_denied", "minio_default"):
        waiting.run("prepare")


def test_a_missing_connection_is_a_failure_of_the_deployment(
    waiting: Release, hook: MlflowHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_MINIO_DEFAULT")
    with failed("no_connection", "minio_default"):
        waiting.run("prepare")
    waiting.clean()
    assert tags_of(hook, waiting.training_run_id)["status"] == "failed"


def test_an_outage_of_the_store_does_not_stop_the_export(waiting: Release, services: Services) -> None:
    services.stop("minio")
    try:
        assert waiting.run("prepare")
    finally:
        services.start("minio")


def test_packages_are_checked_by_the_worker_that_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    packages.require_packages(("torch", "onnxruntime"))
    with refused("missing_package", "no_such_package", "The model is not at fault"):
        packages.require_packages(("torch", "no_such_package"))
