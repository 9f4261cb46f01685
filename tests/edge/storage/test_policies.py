"""The policies of deploy/minio, in MinIO's code: an account may do its work below its prefix, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider

from airflow_onnx.storage import s3
from stack import minio
from tests.edge.leftovers.conftest import Releases, places, releases
from tests.edge.releasing import Release
from tests.edge.retirement.conftest import Registry, registry
from tests.services import Services

__all__ = ["registry", "releases"]

POLICIES = Path(__file__).parents[3] / "deploy" / "minio"
BUCKET, PREFIX = "heimdall-models", "teams/radio"


def denied(call: Callable[..., Any], **arguments: Any) -> None:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    assert caught.value.response["Error"]["Code"] in ("AccessDenied", "403"), str(caught.value)


def require_outside_denied(client: Any, bucket: str, key: str) -> None:
    """Check that an account may neither read, list, put, copy, delete nor abort there."""
    denied(client.get_object, Bucket=bucket, Key=key)
    denied(client.head_object, Bucket=bucket, Key=key)
    denied(client.put_object, Bucket=bucket, Key=key, Body=b"x")
    denied(client.delete_object, Bucket=bucket, Key=key)
    denied(client.create_multipart_upload, Bucket=bucket, Key=key)
    denied(client.list_objects_v2, Bucket=bucket, Prefix=key)
    denied(client.list_objects_v2, Bucket=bucket)
    denied(client.list_multipart_uploads, Bucket=bucket)
    denied(client.delete_bucket, Bucket=bucket)
    denied(client.put_bucket_policy, Bucket=bucket, Policy="{}")


@pytest.fixture
def team(services: Services, connections: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An account with the policy of a team, in the bucket of the tests. The usual connection leads to it."""
    keys = services.context.credentials
    root = StaticProvider(keys.minio_access_key, keys.minio_secret_key)
    admin = MinioAdmin(endpoint=f"127.0.0.1:{services.context.ports.minio}", credentials=root, secure=False)
    policy = (POLICIES / "team-policy.json").read_text()
    assert policy.count("models/") == 1
    (tmp_path / "policy.json").write_text(policy.replace(":::models", f":::{BUCKET}"))
    admin.user_add("radio", "secret-of-radio")
    admin.policy_add("radio", tmp_path / "policy.json")
    admin.policy_set("radio", user="radio")
    stored = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"]) | {"login": "radio", "password": "secret-of-radio"}
    monkeypatch.setenv("AIRFLOW_CONN_MINIO_DEFAULT", json.dumps(stored))
    return f"s3://{BUCKET}/{PREFIX}"


def test_the_account_of_the_releases_reaches_its_buckets_only(services: Services, folder: s3.S3Folder) -> None:
    root, client = minio.s3_client(services.context), folder.hook.get_conn()
    root.put_object(Bucket="mlflow", Key="policy/x", Body=b"x")
    require_outside_denied(client, "mlflow", "policy/x")
    denied(
        client.copy_object,
        Bucket=folder.bucket,
        Key=folder.key("x"),
        CopySource={"Bucket": "mlflow", "Key": "policy/x"},
    )
    denied(client.create_bucket, Bucket="new-bucket")
    # MinIO answers an account that may list a whole bucket with the names of its own ones.
    assert {bucket["Name"] for bucket in client.list_buckets()["Buckets"]} <= {folder.bucket}


def test_the_account_of_a_team_reaches_its_prefix_only(services: Services, team: str) -> None:
    root, client = minio.s3_client(services.context), s3.folder_at("minio_default", team).hook.get_conn()
    # The last one begins as the prefix does.
    for key in ("teams/churn/x", "x", "teams/radio2/x"):
        root.put_object(Bucket=BUCKET, Key=key, Body=b"x")
        require_outside_denied(client, BUCKET, key)
        denied(client.copy_object, Bucket=BUCKET, Key=f"{PREFIX}/x", CopySource={"Bucket": BUCKET, "Key": key})
    denied(client.list_buckets)


def test_a_release_and_both_deletions_need_no_more_than_the_policy_of_a_team(
    team: str, releases: Releases, registry: Registry, judged: Release, release: Release
) -> None:
    release.params["prefix"] = PREFIX
    release.after(judged, "parity_latency")
    for name in ("upload", "register", "approve", "promote"):
        release.run(name)
    uri = release.returned["upload"]["uri"]
    assert uri.startswith(f"{team}/")
    releases.folder = s3.folder_at("minio_default", team, rerun=None)
    unnamed = releases.put(releases.run())
    found = releases.collector(staging_uri=f"{team}/staging").run(dry_run=False)
    assert unnamed in places(found)
    assert uri not in places(found)
    # The right to list uploads has no condition of a prefix, and the checks are in a folder above it.
    without = ["uploads in parts are left out"] * 3 + ["objects of checks are left out"]
    assert [note.partition(":")[0] for note in found.notes] == without
    assert (found.left, releases.keys(unnamed)) == (0, [])
    assert releases.keys(uri)
    registry.folder = releases.folder
    old = registry.released()
    assert registry.objects(old)
    assert registry.retirer().run(dry_run=False).left == 0
    assert (registry.objects(), registry.numbers()) == ([], [])
    assert releases.keys(uri)
