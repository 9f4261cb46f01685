"""Command `verify`: folders, versions of the registry, folders in a store, and files that were changed."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import mlflow
import pytest

from onnx_release.cli.main import main
from onnx_release.limits import REFERENCE_FILE, REPORT_FILE
from onnx_release.provenance.signature import sign
from onnx_release.samples.reference import read_reference, write_reference
from onnx_release.training_runs import tags
from tests.core.cli.command import document, run_without_airflow
from tests.core.provenance import keys
from tests.services import Services


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["verdict"] for check in found["checks"]}


def test_the_folder_of_an_export_is_verified(released_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "verify", released_folder)
    assert set(verdicts(found)) == {"report", "files", "signature", "checker", "loads", "reference"}
    assert set(verdicts(found).values()) == {"passed"}
    recorded = [file["path"] for file in found["files"] if file["recorded_sha256"] == file["sha256"]]
    assert REFERENCE_FILE in recorded
    document(capsys, "verify", released_folder, "--sha256", found["sha256"])
    assert verdicts(document(capsys, "verify", released_folder, "--sha256", "0" * 64, code=1))["sha256"] == "failed"


def test_every_change_is_found(released_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = read_reference(released_folder)
    assert stored
    for _, outputs in stored:
        outputs["positions"] = outputs["positions"] + 1
    write_reference(released_folder, stored)
    found = document(capsys, "verify", released_folder, code=1)
    assert {name for name, verdict in verdicts(found).items() if verdict == "failed"} == {"files", "loads", "reference"}
    (reference,) = [check["detail"] for check in found["checks"] if check["name"] == "reference"]
    assert "output 'positions' of 'example'" in reference
    assert "output 'uncertainties'" not in reference
    (released_folder / REFERENCE_FILE).write_bytes(b"no archive")
    assert verdicts(document(capsys, "verify", released_folder, code=1))["reference"] == "failed"
    (released_folder / REFERENCE_FILE).unlink()
    (released_folder / "MLmodel").write_text((released_folder / "MLmodel").read_text().replace("positions", "p"))
    (released_folder / "model.onnx").write_bytes(b"garbage")
    verdict = verdicts(document(capsys, "verify", released_folder, code=1))
    failed = {name for name, one in verdict.items() if one == "failed"}
    assert (failed, verdict["reference"]) == ({"files", "signature", "checker", "loads"}, "skipped")


def test_a_signature_is_verified_on_request(
    released_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, public = keys.new_key(), tmp_path / "key.pub"
    public.write_text(keys.public_pem(key))
    unsigned = document(capsys, "verify", released_folder, "--public-key", public, code=1)
    assert verdicts(unsigned)["signed"] == "failed"
    sign(released_folder, keys.signing_key(key))
    assert verdicts(document(capsys, "verify", released_folder, "--public-key", public))["signed"] == "passed"
    public.write_text(keys.public_pem(keys.new_key()))
    assert verdicts(document(capsys, "verify", released_folder, "--public-key", public, code=1))["signed"] == "failed"
    for path in (released_folder / REPORT_FILE, tmp_path / "absent"):
        error = document(capsys, "verify", released_folder, "--roots", path, code=2)["error"]
        assert (error["code"], error["subject"]) == ("wrong_argument", "The argument --roots")


@pytest.mark.parametrize("content", [None, "{}", "[]", "no json", '{"schema_version": 1, "status": "accepted"}'])
def test_a_folder_without_a_report_cannot_be_verified(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / REPORT_FILE).write_text(content)
    assert document(capsys, "verify", tmp_path, code=2)["error"]["code"] == "no_release"


def test_a_version_in_a_store_needs_the_consent_of_the_user(
    server: Services, released_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    context, name = server.context, f"net-{uuid.uuid4().hex[:6]}"
    for variable, value in server.keys().items():
        monkeypatch.setenv(variable, value)
    store = boto3.client("s3", endpoint_url=context.minio_url)
    bucket, prefix = "heimdall-models", f"test/{name}"
    for file in released_folder.iterdir():
        store.upload_file(str(file), bucket, f"{prefix}/{file.name}")
    place = f"s3://{bucket}/{prefix}"
    sha256 = json.loads((released_folder / REPORT_FILE).read_text())["artifact"]["sha256"]
    client = mlflow.MlflowClient()
    client.create_registered_model(name)
    client.create_model_version(name, place, tags={tags.VERSION_SHA256: sha256})
    client.set_registered_model_alias(name, "candidate", "1")
    assert set(verdicts(document(capsys, "verify", place)).values()) == {"passed"}
    uri = f"models:/{name}@candidate"
    error = document(capsys, "verify", uri, code=2)["error"]
    assert error["code"] == "foreign_source"
    assert f"--source s3://{bucket}/" in error["action"]
    assert main(["verify", uri, "--source", "s3://heimdall", "-q"]) == 2
    found = document(capsys, "verify", uri, "--source", f"s3://{bucket}/")
    assert verdicts(found)["tag"] == "passed"
    client.set_model_version_tag(name, "1", tags.VERSION_SHA256, "0" * 64)
    found = document(capsys, "verify", f"models:/{name}/1", "--source", f"s3://{bucket}/", code=1)
    assert verdicts(found) == {**verdicts(found), "tag": "failed", "files": "passed"}
    # In a process of its own: boto3 keeps the keys of this one.
    done = run_without_airflow("verify", place, "--json", AWS_SECRET_ACCESS_KEY="wrong")
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "no_access")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    document(capsys, "verify", place, code=3)
