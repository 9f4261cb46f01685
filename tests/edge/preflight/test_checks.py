"""Checks of MLflow and of the store on real servers, with accounts that lack rights, and with nothing left behind."""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.preflight.checks import Check, State, Subject
from airflow_onnx.preflight.mlflow_probe import MARK, MlflowProbe
from airflow_onnx.preflight.store import StoreProbe
from airflow_onnx.preflight.watched import check_experiments
from airflow_onnx.preflight.worker import check_staging, write_to_folder
from onnx_release.errors import Transient
from soak.fault_proxy import proxy
from stack.minio import s3_client
from tests.edge.conftest import Services

BUCKET = "heimdall-models"
SECRET = "least-rights-secret"
RIGHTS = {"GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload"}


@pytest.fixture
def place() -> str:
    """A folder of its own."""
    return f"s3://{BUCKET}/teams/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def account(services: Services, connections: None, monkeypatch: pytest.MonkeyPatch, place: str) -> Iterator[Any]:
    """Return a function that makes the connection `least` of an account without some rights."""
    secrets = services.context.credentials
    root = StaticProvider(secrets.minio_access_key, secrets.minio_secret_key)
    admin = MinioAdmin(endpoint=f"127.0.0.1:{services.context.ports.minio}", credentials=root, secure=False)
    name = f"least-{uuid.uuid4().hex[:8]}"

    def make(*denied: str, lists: bool = True) -> None:
        resource = f"arn:aws:s3:::{place.removeprefix('s3://')}/*"
        allowed = [f"s3:{right}" for right in sorted(RIGHTS - set(denied))]
        statements: list[dict[str, Any]] = [{"Effect": "Allow", "Action": allowed, "Resource": [resource]}]
        if lists:
            bucket = [f"arn:aws:s3:::{BUCKET}"]
            statements.append({"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": bucket})
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"Version": "2012-10-17", "Statement": statements}, file)
            file.flush()
            admin.policy_add(name, file.name)
        admin.user_add(name, SECRET)
        admin.policy_set(name, user=name)
        stored = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"]) | {"login": name, "password": SECRET}
        monkeypatch.setenv("AIRFLOW_CONN_LEAST", json.dumps(stored))

    yield make
    admin.user_remove(name)


def states(subject: Subject) -> dict[str, str]:
    return {check.id: check.state.value for check in subject.checks}


def of(subject: Subject, check_id: str) -> Check:
    return next(check for check in subject.checks if check.id == check_id)


def stored_keys(services: Services, place: str) -> list[str]:
    found = s3_client(services.context).list_objects_v2(Bucket=BUCKET, Prefix=place.split("/", 3)[3])
    return [item["Key"] for item in found.get("Contents", [])]


def store_checks(conn_id: str, uri: str) -> Subject:
    subject = Subject("Store")
    StoreProbe(conn_id, uri).run(subject)
    return subject


def test_the_right_to_a_prefix_is_enough_and_no_object_is_left(services: Services, account: Any, place: str) -> None:
    account()
    subject = store_checks("least", place)
    assert {check.state for check in subject.checks} == {State.OK}, subject.checks
    assert len(subject.checks) == 9
    assert stored_keys(services, place) == []
    # Outside of the prefix the same account has no rights.
    elsewhere = states(store_checks("least", f"s3://{BUCKET}/elsewhere"))
    assert (elsewhere["store.delete"], elsewhere["store.multipart"]) == ("failed", "failed")


@pytest.mark.parametrize(
    ("denied", "failed", "skipped"),
    [
        ("DeleteObject", {"store.delete"}, {"store.put", "store.get", "store.copy", "store.clean"}),
        ("PutObject", {"store.multipart", "store.put"}, {"store.get", "store.copy"}),
        ("GetObject", {"store.get", "store.copy"}, set()),
        ("AbortMultipartUpload", {"store.multipart"}, set()),
    ],
)
def test_each_missing_right_is_named_and_no_object_is_left(
    services: Services, account: Any, place: str, denied: str, failed: set[str], skipped: set[str]
) -> None:
    account(denied)
    subject = store_checks("least", place)
    found = states(subject)
    assert {name for name, state in found.items() if state == "failed"} == failed
    assert {name for name, state in found.items() if state == "skipped"} == skipped
    assert "Check the key, the secret and the account's policy" in of(subject, min(failed)).action
    assert stored_keys(services, place) == []
    client = s3_client(services.context)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET, Prefix=place.split("/", 3)[3])


def test_an_answer_lost_after_the_put_leaves_no_object(
    services: Services, connections: None, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(method: str, path: str, status: int, body: bytes) -> tuple[int, bytes]:
        is_object = method == "GET" and "onnx-release-check" in path
        return (403, b"<Error><Code>AccessDenied</Code></Error>") if is_object else (status, body)

    with proxy(services.context.minio_url, fault) as url:
        host, port = url.rsplit(":", 1)
        stored = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"])
        stored |= {"host": host, "port": int(port), "extra": "{}"}
        monkeypatch.setenv("AIRFLOW_CONN_PROXIED", json.dumps(stored))
        subject = store_checks("proxied", place)
    assert states(subject)["store.get"] == "failed"
    assert states(subject)["store.clean"] == "ok"
    assert stored_keys(services, place) == []


@pytest.mark.parametrize(
    ("conn_id", "uri", "check_id", "part"),
    [
        ("no_such_connection", f"s3://{BUCKET}/x", "store.connection", "no_such_connection"),
        ("minio_default", "s3://no-such-bucket/x", "store.bucket", "no-such-bucket"),
    ],
)
def test_a_missing_connection_or_bucket_ends_the_checks_of_the_store_alone(
    administrator: None, conn_id: str, uri: str, check_id: str, part: str
) -> None:
    subject = store_checks(conn_id, uri)
    assert states(subject)[check_id] == "failed"
    assert part in of(subject, check_id).found
    after = [check.state for check in subject.checks[[one.id for one in subject.checks].index(check_id) + 1 :]]
    assert set(after) == {State.SKIPPED}


def test_mlflow_is_checked_with_a_hidden_experiment_and_nothing_else_is_left(hook: MlflowHook) -> None:
    for _ in range(2):
        subject = Subject("MLflow")
        MlflowProbe("mlflow_default").run(subject)
        assert {check.state for check in subject.checks} == {State.OK}, subject.checks
    assert hook.client.search_registered_models(f"name LIKE '{MARK}%'") == []
    found = hook.client.search_experiments(view_type=3, filter_string=f"name LIKE '{MARK}%'")
    assert [one.lifecycle_stage for one in found] == ["deleted"]
    assert len(hook.client.search_runs([found[0].experiment_id], run_view_type=3)) == 1


@pytest.mark.parametrize(
    ("part", "failed"),
    [
        ("registered-models/create", {"mlflow.registry"}),
        ("registered-models/delete", {"mlflow.registry"}),
        ("runs/log-batch", {"mlflow.runs"}),
        ("mlflow-artifacts", {"mlflow.artifacts"}),
        ("experiments/search", {"mlflow.read"}),
    ],
)
def test_each_refusal_of_mlflow_is_named(
    services: Services, hook: MlflowHook, monkeypatch: pytest.MonkeyPatch, part: str, failed: set[str]
) -> None:
    def fault(method: str, path: str, status: int, body: bytes) -> tuple[int, bytes]:
        return (403, b"Permission denied") if part in path else (status, body)

    with proxy(services.context.mlflow_url, fault) as url:
        monkeypatch.setenv("AIRFLOW_CONN_PROXIED", json.dumps({"conn_type": "mlflow", "host": url}))
        subject = Subject("MLflow")
        MlflowProbe("proxied").run(subject)
    assert {check.id for check in subject.checks if check.state is State.FAILED} == failed, subject.checks
    # The proxy has refused the answer and not the request.
    for one in hook.client.search_registered_models(f"name LIKE '{MARK}%'"):
        hook.client.delete_registered_model(one.name)


def test_an_old_server_and_another_server_are_named(
    services: Services, connections: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(found: bytes) -> Check:
        def fault(method: str, path: str, status: int, body: bytes) -> tuple[int, bytes]:
            return (status, found) if path == "/version" else (status, body)

        with proxy(services.context.mlflow_url, fault) as url:
            monkeypatch.setenv("AIRFLOW_CONN_PROXIED", json.dumps({"conn_type": "http", "host": url}))
            probe, subject = MlflowProbe("proxied"), Subject("MLflow")
            subject.check("mlflow.connection", probe.connection)
            subject.check("mlflow.version", probe.version)
        assert (of(subject, "mlflow.connection").state, "'http'" in of(subject, "mlflow.connection").found) == (
            State.WARNING, True,
        )  # fmt: skip
        return of(subject, "mlflow.version")

    assert "2.9.1, older than" in version(b"2.9.1").found
    assert "names no version" in version(b"<html>").found


def test_watched_experiments_are_found_and_their_newest_run_is_not_changed(hook: MlflowHook) -> None:
    name = f"watched-{uuid.uuid4().hex[:8]}"
    run = hook.client.create_run(hook.client.create_experiment(name))
    before = hook.client.get_run(run.info.run_id).data.to_dictionary()
    subject = Subject("MLflow")
    check_experiments(subject, MlflowProbe("mlflow_default").rest, [name, "no-such-experiment"])
    assert states(subject) == {"watch.experiments": "warning", "watch.rights": "ok"}
    assert "no-such-experiment" in of(subject, "watch.experiments").found
    assert hook.client.get_run(run.info.run_id).data.to_dictionary() == before


def test_the_staging_folder_is_written_and_named_if_it_cannot_be(
    connections: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str, services: Services
) -> None:
    write_to_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(Transient, match="cannot be written"):
        write_to_folder(tmp_path / "file")
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__STAGING_URI", f"{place}/staging")
    subject = Subject("Staging")
    check_staging(subject, [StoreProbe("minio_default", f"{place}/target")])
    assert states(subject)["staging.copy"] == "ok", subject.checks
    assert stored_keys(services, place) == []
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__STAGING_URI", "ftp://host/x")
    subject = Subject("Staging")
    check_staging(subject)
    assert states(subject) == {"staging.uri": "failed"}
