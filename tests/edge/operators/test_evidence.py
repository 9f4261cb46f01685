"""Evidence beside a released model: bill of materials, provenance statement and signature."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import s3
from onnx_release.limits import BILL_FILE, EVIDENCE, REPORT_FILE, SIGNATURE_FILE, STATEMENT_FILE
from onnx_release.training_runs import tags
from tests.core.provenance import keys
from tests.edge.operators.test_move_alias import Moving, Released
from tests.edge.releasing import BUCKET, Release, versions_of
from tests.refusals import failed

KEY = keys.new_key()
PREFIX = "AIRFLOW__ONNX_RELEASE__"


def use_key(monkeypatch: pytest.MonkeyPatch, key: keys.Key, **extra: str) -> None:
    """Make the connection of a deployment that signs."""
    fields = {"private_key": keys.private_pem(key, "secret"), **extra}
    connection = {"conn_type": "generic", "password": "secret", "extra": {k: v for k, v in fields.items() if v}}
    monkeypatch.setenv("AIRFLOW_CONN_SIGNING", json.dumps(connection))
    monkeypatch.setenv(f"{PREFIX}SIGNING_CONN_ID", "signing")


@pytest.fixture
def signing(monkeypatch: pytest.MonkeyPatch) -> None:
    use_key(monkeypatch, KEY)


def folder_of(release: Release) -> s3.S3Folder:
    return s3.folder_at("minio_default", release.pushed["target_uri"])


def times(release: Release) -> dict[str, object]:
    return {name: row["LastModified"] for name, row in s3.listing(folder_of(release)).items() if name in EVIDENCE}


def put(release: Release, name: str, content: bytes) -> None:
    S3Hook("minio_default").load_bytes(content, folder_of(release).key(name), BUCKET, replace=True)


def test_the_stock_tool_accepts_a_released_folder(
    hook: MlflowHook, release: Release, judged: Release, tmp_path: Path, signing: None
) -> None:
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    stored, local = folder_of(release), tmp_path / "model"
    local.mkdir()
    for name in s3.sizes(stored):
        s3.fetch_one(stored, name, local, 2**26)
    (tmp_path / "key.pub").write_text(keys.public_pem(KEY))
    command = ("-m", "model_signing", "verify", "key", "--signature", str(local / SIGNATURE_FILE), "--public_key")
    subprocess.run((sys.executable, *command, str(tmp_path / "key.pub"), str(local)), check=True, capture_output=True)
    statement = json.loads((local / STATEMENT_FILE).read_text())
    report = json.loads((local / REPORT_FILE).read_text())
    files = {file["path"]: file["sha256"] for file in report["artifact"]["files"]}
    assert {one["name"]: one["digest"]["sha256"] for one in statement["subject"]} == files
    bill = json.loads((local / BILL_FILE).read_text())
    assert bill["metadata"]["component"]["name"] == release.model_name
    assert "secret" not in "".join((local / name).read_text() for name in EVIDENCE)

    # The same bytes by the same key: nothing is made again. Another key signs again.
    first = times(release)
    release.run("register")
    assert times(release) == first
    assert len(versions_of(hook, release)) == 1


def test_the_evidence_is_made_again_for_another_key_and_after_damage(
    release: Release, judged: Release, signing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.after(judged, "parity_latency").run("upload", "register")
    first = s3.read_text(folder_of(release), SIGNATURE_FILE)
    use_key(monkeypatch, keys.new_key())
    release.run("register")
    second = s3.read_text(folder_of(release), SIGNATURE_FILE)
    put(release, BILL_FILE, b"{}")
    release.run("register")
    third = s3.read_text(folder_of(release), SIGNATURE_FILE)
    assert len({first, second, third}) == 3
    # Without a key the old signature would be that of another bill of materials.
    monkeypatch.setenv(f"{PREFIX}SIGNING_CONN_ID", "")
    release.run("register")
    assert times(release).keys() == EVIDENCE - {SIGNATURE_FILE}


def test_an_alias_moves_only_to_a_signed_version_where_that_is_required(
    hook: MlflowHook, release: Release, judged: Release, signing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{PREFIX}REQUIRE_SIGNATURE", "True")
    release.after(judged, "parity_latency").run("upload", "register")
    signature = s3.read_text(folder_of(release), SIGNATURE_FILE).encode()
    s3.remove(folder_of(release), [SIGNATURE_FILE])
    with failed("unsigned"):
        release.run("promote")
    put(release, SIGNATURE_FILE, b"{}")
    with failed("foreign_signature"):
        release.run("promote")
    put(release, SIGNATURE_FILE, signature)
    use_key(monkeypatch, keys.new_key())
    with failed("foreign_signature", "signing"):
        release.run("promote")
    # A deployment that verifies needs the public half alone.
    use_key(monkeypatch, KEY, private_key="", public_key=keys.public_pem(KEY))
    put(release, BILL_FILE, b"{}")
    with failed("signature_mismatch", BILL_FILE):
        release.run("promote")
    assert "candidate" not in hook.client.get_registered_model(release.model_name).aliases
    use_key(monkeypatch, KEY)
    release.run("register", "promote")

    version = release.returned["promote"]
    moving = Moving(
        Released(release.model_name, release.training_run_id, version["source"], version["sha256"]),
        alias="stable", expected_version="",
    )  # fmt: skip
    moving.verify()
    s3.remove(folder_of(release), [SIGNATURE_FILE])
    with failed("unsigned"):
        moving.verify()


def test_wrong_keys_of_the_deployment_are_its_own_fault(
    hook: MlflowHook, release: Release, judged: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.after(judged, "parity_latency").run("upload")
    monkeypatch.setenv(f"{PREFIX}SIGNING_CONN_ID", "absent")
    with failed("no_connection"):
        release.run("register")
    use_key(monkeypatch, KEY, private_key="no key")
    with failed("unusable_key", "signing"):
        release.run("register")
    use_key(monkeypatch, KEY, private_key="", private_key_file="/no/such/file")
    with failed("wrong_signing_key", "/no/such/file"):
        release.run("register")
    assert versions_of(hook, release) == []
    assert hook.client.get_run(release.training_run_id).data.tags.get(tags.STATUS) != "refused"
    monkeypatch.setenv(f"{PREFIX}SIGNING_CONN_ID", "")
    monkeypatch.setenv(f"{PREFIX}REQUIRE_SIGNATURE", "True")
    release.run("register")
    with failed("wrong_option", "signing_conn_id"):
        release.run("promote")
