"""Garbage collection on a real store and a real MLflow: it removes leftovers, and nothing that has a name."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from airflow_onnx import airflow_urls
from airflow_onnx.dag_runs import State
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.leftovers import table
from airflow_onnx.leftovers.collect import collect
from airflow_onnx.storage import s3, staging
from airflow_onnx.storage.staging_s3 import S3Staging
from onnx_release.errors import Refused, Transient
from onnx_release.scratch import scratch_folder
from onnx_release.training_runs import tags
from soak.fault_proxy import Change, proxy
from stack import mlflow_server
from tests.edge.leftovers.conftest import Releases, places
from tests.refusals import refused
from tests.services import Services

YEAR_S = 365 * 86400.0


@contextmanager
def through(releases: Releases, fault: Change) -> Iterator[Releases]:
    """Yield the same releases, whose MLflow is behind a proxy."""
    with (
        proxy(releases.hook.server.tracking_uri, fault) as address,
        MlflowRest(replace(releases.hook.server, tracking_uri=address)) as rest,
    ):
        yield replace(releases, rest=rest)


def test_only_objects_without_a_name_are_removed(releases: Releases) -> None:
    run = releases.run()
    version, unnamed = releases.put(run), releases.put(run)
    releases.register(run, version)
    # The layouts of model servers beside the artifact belong to it.
    for uri in (version, unnamed):
        releases.put_object(f"{uri}-serving/t/x", run)
    by_tag, in_progress = releases.run(), releases.run(status="running")
    kept = [releases.put(by_tag), releases.put(in_progress), releases.put(releases.run(last_attempt="waiting 2026"))]
    releases.hook.client.set_tag(by_tag, "onnx_release.int8.s3_uri", kept[0])
    deleted_run = releases.run()
    kept.append(releases.put(deleted_run))
    releases.hook.client.set_tag(deleted_run, tags.S3_URI, kept[-1])
    releases.hook.client.delete_run(deleted_run)
    foreign = [releases.folder.key(name) for name in ("other.txt", "m/not-a-run/0123456789abcdef/x")]
    for key in foreign:
        releases.client.put_object(Bucket=releases.folder.bucket, Key=key, Body=b"x")

    listed = releases.collector().run(dry_run=True)
    assert places(listed) == [unnamed]
    assert releases.keys(unnamed), "a dry run changes nothing"
    assert sorted(one.place for one in listed.kept) == sorted(kept)

    found = releases.collector().run(dry_run=False)
    assert (places(found), found.left) == ([unnamed], 0)
    assert [releases.keys(uri) for uri in (unnamed, f"{unnamed}-serving")] == [[], []]
    for uri in (version, *kept):
        assert releases.keys(uri) == ["MLmodel", "data/model.onnx"]
    assert releases.keys(f"{version}-serving") == ["t/x"]
    assert {"other.txt", "m/not-a-run/0123456789abcdef/x"} <= set(s3.sizes(releases.folder))
    assert places(releases.collector().run(dry_run=False)) == []


def test_a_copy_of_a_deleted_version_keeps_its_objects(releases: Releases) -> None:
    run = releases.run()
    uri, other = releases.put(run), releases.put(run)
    number = releases.register(run, uri)
    releases.register(run, other)
    releases.hook.client.copy_model_version(f"models:/{releases.model}/{number}", f"{releases.model}-copy")
    releases.hook.client.delete_model_version(releases.model, str(number))
    assert places(releases.collector().run(dry_run=False)) == []
    assert releases.keys(uri)


def test_a_version_that_is_made_between_search_and_removal_keeps_its_objects(releases: Releases) -> None:
    runs = [releases.run() for _ in range(4)]
    uris = [releases.put(run) for run in runs]
    collector = releases.collector()
    found = collector.find()
    assert places(found) == sorted(uris)
    releases.register(runs[0], uris[0])
    releases.hook.client.set_tag(runs[1], tags.STATUS, "running")
    time.sleep(1.1)  # The store's times have whole seconds.
    key = uris[2].removeprefix(f"s3://{releases.folder.bucket}/")
    releases.client.put_object(Bucket=releases.folder.bucket, Key=f"{key}/MLmodel", Body=b"abc")
    result = collector.remove(found)
    stays = {one.place: one.stays for one in result.leftovers if not one.removed}
    assert set(stays) == set(uris[:3])
    assert "version" in stays[uris[0]]
    assert "progress" in stays[uris[1]]
    assert all(releases.keys(uri) for uri in uris[:3])
    assert releases.keys(uris[3]) == []


@pytest.mark.parametrize("wrong_s", [YEAR_S, -YEAR_S, 86400.0])
def test_the_clock_of_the_worker_has_no_part_in_an_age(
    releases: Releases, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong_s: float
) -> None:
    young = releases.put(releases.run())
    work = staging.work_folder_uri(f"{releases.folder.uri}-staging", "d", "r")
    s3.put_text(s3.folder_at("minio_default", work), "artifact/x", "x")
    other = tmp_path / "staging" / ("0" * 24)
    other.mkdir(parents=True)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + wrong_s)
    for changes in ({}, {"staging_uri": other.parent.as_uri()}):
        found = releases.collector(grace_s=3600.0, work_keep_s=3600.0, **changes).run(dry_run=False)
        assert places(found, "objects", "staging", "upload", "version") == []
    assert any("the clock of this host differs" in note for note in found.notes)
    # The same in the set-up of a release.
    S3Staging(staging.work_folder_uri(f"{releases.folder.uri}-staging", "d", "other")).prepare(3600.0)
    assert (releases.keys(young), releases.keys(work), other.is_dir()) == (
        ["MLmodel", "data/model.onnx"],
        ["artifact/x"],
        True,
    )


def test_uploads_work_folders_and_checks_are_removed(releases: Releases, tmp_path: Path) -> None:
    run = releases.run()
    named = releases.put(run)
    releases.register(run, named)
    bucket, prefix = releases.folder.bucket, releases.folder.prefix.rstrip("/")
    name = "onnx-release-check-0123456789ab.txt"
    begun = [
        f"{prefix}-staging/{name}",
        f"{named.removeprefix(f's3://{bucket}/')}/model.onnx.data",
        f"{prefix}-staging/{'1' * 24}/artifact/x",
    ]
    stays = f"{prefix}/of-another-program.bin"
    for key in (*begun, stays):
        upload = releases.client.create_multipart_upload(Bucket=bucket, Key=key)
        releases.client.upload_part(Bucket=bucket, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"x")
    checks = sorted((name, f"{named.removeprefix(f'{releases.folder.uri}/').rpartition('/')[0]}/{name}"))
    for check in checks:
        s3.put_text(releases.folder, check, "x")
    for check in (name, f"{name}.copy", "onnx-release-check-of-a-person.txt"):
        s3.put_text(s3.folder_at("minio_default", f"{releases.folder.uri}-staging"), check, "x")
    s3.put_text(s3.folder_at("minio_default", f"{releases.folder.uri}-staging"), f"{'2' * 24}/artifact/x", "x")
    s3.put_text(s3.folder_at("minio_default", f"{releases.folder.uri}-staging"), "team/x", "x")

    staged = [f"{releases.folder.uri}-staging/{one}" for one in (name, f"{name}.copy")]
    young = releases.collector(grace_s=3600.0).run(dry_run=False)
    assert places(young, "staged check object", "upload") == []
    found = releases.collector().run(dry_run=False)
    assert places(found, "staged check object") == staged
    assert places(found, "upload") == sorted(f"s3://{bucket}/{key}" for key in begun)
    assert places(found, "staging") == [f"{releases.folder.uri}-staging/{'2' * 24}"]
    assert places(found, "check object") == [f"{releases.folder.uri}/{check}" for check in checks]
    left = releases.client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", [])
    assert [upload["Key"] for upload in left] == [stays]
    assert sorted(s3.sizes(releases.folder)) == sorted(
        f"{named.removeprefix(releases.folder.uri + '/')}/{name}" for name in ("MLmodel", "data/model.onnx")
    )
    assert releases.keys(f"{releases.folder.uri}-staging") == ["onnx-release-check-of-a-person.txt", "team/x"]


def test_work_folders_on_a_disk_and_temporary_folders(
    releases: Releases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = tmp_path / "staging"
    for name in ("1" * 24, "not-a-work-folder"):
        (root / name).mkdir(parents=True)
        (root / name / "model").write_bytes(b"abc")
    with scratch_folder() as living:
        dead = tmp_path / "onnx-release-dead"
        (dead / "files").mkdir(parents=True)
        (dead / "owner.lock").write_bytes((living.parent / "owner.lock").read_bytes())
        found = releases.collector(staging_uri=root.as_uri()).run(dry_run=True)
        assert places(found, "staging", "scratch") == sorted([(root / ("1" * 24)).as_uri(), dead.as_uri()])
        found = releases.collector(staging_uri=root.as_uri()).run(dry_run=False)
        assert (found.left, [path.name for path in root.iterdir()]) == (0, ["not-a-work-folder"])
        assert (living.is_dir(), dead.exists()) == (True, False)


def test_a_version_that_never_became_ready_is_deleted(releases: Releases, services: Services) -> None:
    run = releases.run()
    uris = [releases.put(run) for _ in range(3)]
    numbers = [releases.register(run, uri) for uri in uris]
    releases.hook.client.set_registered_model_alias(releases.model, "candidate", str(numbers[1]))
    path = urlsplit(mlflow_server.sqlite_store(services.context)).path
    with sqlite3.connect(path, timeout=30) as database:
        database.execute(
            "UPDATE model_versions SET status = 'PENDING_REGISTRATION' WHERE name = ? AND version < 3", [releases.model]
        )
    assert places(releases.collector(grace_s=3600.0).run(dry_run=False), "version") == []
    found = releases.collector().run(dry_run=False)
    assert places(found, "version") == [f"models:/{releases.model}/{numbers[0]}"]
    left = releases.hook.client.search_model_versions(f"name='{releases.model}'")
    assert sorted(int(version.version) for version in left) == numbers[1:]
    # It named its objects until now.
    assert places(releases.collector().find()) == [uris[0]]


def test_a_second_version_of_a_release_is_removed_unless_something_names_it(releases: Releases) -> None:
    run, others = releases.run(), [releases.run() for _ in range(3)]
    uris = [releases.put(one) for one in (run, *others)]
    # A duplicate, one with an alias, one that its training run names, and another source of the same bytes.
    for one, uri in zip((run, *others[:2]), uris[:3], strict=True):
        releases.register(one, uri)
    numbers = [releases.register(one, uri) for one, uri in zip((run, *others[:2]), uris[:3], strict=True)]
    releases.register(others[2], uris[3])
    releases.register(others[2], releases.put(others[2]))
    releases.hook.client.set_registered_model_alias(releases.model, "candidate", str(numbers[1]))
    releases.hook.client.set_tag(others[1], tags.VERSION, str(numbers[2]))
    assert places(releases.collector(grace_s=3600.0).run(dry_run=False), "duplicate version") == []
    found = releases.collector()
    listed = found.find()
    assert places(listed, "duplicate version") == [f"models:/{releases.model}/{numbers[0]}"]
    # It gets an alias between the search and the removal.
    releases.hook.client.set_registered_model_alias(releases.model, "late", str(numbers[0]))
    (kept,) = [one for one in found.remove(listed).leftovers if one.kind == "duplicate version"]
    assert (kept.removed, "names it now" in kept.stays) == (False, True)
    releases.hook.client.delete_registered_model_alias(releases.model, "late")
    found.run(dry_run=False)
    left = releases.hook.client.search_model_versions(f"name='{releases.model}'")
    assert len(left) == 7
    assert numbers[0] not in [int(version.version) for version in left]


def test_nothing_is_removed_if_one_page_of_the_registry_cannot_be_read(releases: Releases) -> None:
    run = releases.run()
    named = releases.put(run)
    releases.register(run, named)

    def second_page_fails(method: str, path: str, status: int, body: bytes) -> tuple[int, bytes]:
        if "model-versions/search" not in path:
            return status, body
        if "page_token" in path:
            return 500, b'{"error_code": "INTERNAL_ERROR"}'
        return status, json.dumps({"model_versions": [], "next_page_token": "2"}).encode()

    with through(releases, second_page_fails) as at_proxy, pytest.raises(Transient):
        at_proxy.collector().run(dry_run=False)
    assert releases.keys(named)


def test_addresses_of_versions_are_only_compared(releases: Releases) -> None:
    """MLflow takes any text as the address of a version."""
    sources = ["s3://b/" + "/" * 1_000_000, "models:/m-1", "", "file:///etc/passwd", "s3://\x00", "runs:/../..", "s3:"]
    rows = [{"name": "m", "version": "1", "source": source} for source in sources]

    def hostile(method: str, path: str, status: int, body: bytes) -> tuple[int, bytes]:
        return (200, json.dumps({"model_versions": rows}).encode()) if "versions/search" in path else (status, body)

    with through(releases, hostile) as at_proxy:
        unnamed = at_proxy.put(releases.run(), server=at_proxy.rest.server.tracking_uri)
        assert places(at_proxy.collector().find()) == [unnamed]
        rows.append({"name": "m", "version": "2", "source": f"s3a://{unnamed.removeprefix('s3://')}/"})
        assert places(at_proxy.collector().find()) == []


def test_releases_of_another_mlflow_server_stay(releases: Releases) -> None:
    ours, theirs = releases.run(), "0" * 32
    copied = releases.put(ours, server="http://copy-of-the-database:5000")
    unknown = releases.put(theirs)
    with refused("other_tracking_server", releases.folder.uri):
        releases.collector().run(dry_run=False)
    leftover = releases.put(ours)
    found = releases.collector().run(dry_run=False)
    assert (places(found), sorted(one.place for one in found.kept)) == ([leftover], sorted([copied, unknown]))
    assert releases.keys(copied)
    assert releases.keys(unknown)


def test_a_registry_without_versions_of_released_runs_is_not_believed(releases: Releases) -> None:
    releases.put(releases.run())
    released = releases.put(releases.run(version="3", registered_model="m"))

    def empty(method: str, path: str, status: int, body: bytes) -> tuple[int, bytes]:
        return (200, b"{}") if "model-versions/search" in path else (status, body)

    def hidden(method: str, path: str, status: int, body: bytes) -> tuple[int, bytes]:
        # As MLflow's own sign-in does: a search leaves out what the account may not read.
        if "registered-models/get" in path:
            return 403, b"Permission denied"
        return empty(method, path, status, body)

    for fault, code, version in ((empty, "registry_empty", "3"), (hidden, "mlflow_permission", "")):
        with through(releases, fault) as at_proxy:
            uri = at_proxy.put(releases.run(version=version), server=at_proxy.rest.server.tracking_uri)
            with refused(code):
                at_proxy.collector().run(dry_run=False)
            assert releases.keys(uri)
    assert releases.keys(released)


def test_only_the_own_prefix_is_touched(releases: Releases) -> None:
    inner = replace(releases, folder=replace(releases.folder, prefix=f"{releases.folder.prefix}teams/radio/"))
    beside = replace(releases, folder=replace(releases.folder, prefix=f"{releases.folder.prefix.rstrip('/')}2/"))
    run = releases.run()
    uris = [one.put(run) for one in (releases, inner, beside)]
    assert places(releases.collector().run(dry_run=False)) == [uris[0]]
    assert [bool(releases.keys(uri)) for uri in uris] == [False, True, True]
    assert places(inner.collector().run(dry_run=False)) == [uris[1]]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"grace_h": 0.5}, "wrong_grace"),
        ({"grace_h": float("nan")}, "wrong_grace"),
        ({"grace_h": "24"}, "wrong_grace"),
        ({"grace_h": True}, "wrong_grace"),
        ({"grace_h": None}, "wrong_grace"),
        ({"dry_run": "no"}, "wrong_dry_run"),
        ({"dry_run": 0}, "wrong_dry_run"),
        ({"dry_run": None}, "wrong_dry_run"),
        ({"bucket": "../other"}, "wrong_name"),
        ({"bucket": ""}, "wrong_name"),
        ({"prefix": "../other"}, "wrong_name"),
        ({"prefix": "a//b"}, "wrong_name"),
    ],
)
def test_a_wrong_parameter_is_refused(connections: None, changes: dict[str, object], code: str) -> None:
    given = {
        "bucket": "heimdall-models", "prefix": "", "mlflow_conn_id": "mlflow_default", "s3_conn_id": "minio_default",
        "grace_h": 24.0, "dry_run": True, "dag_state": lambda *_: State.ABSENT,
    }  # fmt: skip
    with refused(code):
        collect(**(given | changes))  # type: ignore[arg-type]


def test_objects_of_a_cleared_release_stay(releases: Releases) -> None:
    run = releases.run(status="failed", dag_run_url=airflow_urls.dag_run_url("release_onnx", "manual__1"))
    uri = releases.put(run)
    active = releases.collector(is_active=lambda *ids: ids == ("release_onnx", "manual__1"))
    assert places(active.run(dry_run=False)) == []
    assert places(releases.collector().run(dry_run=False)) == [uri]


def test_the_table_has_a_line_for_each_leftover_and_for_each_place_that_stays(releases: Releases) -> None:
    leftover, kept = releases.put(releases.run()), releases.put(releases.run(status="running"))
    found = releases.collector().run(dry_run=True)
    text = "\n".join(table.lines(found))
    assert f"objects  {leftover}" in text
    assert f"stays: {kept}: a release of its training run is in progress" in text
    assert "1 leftovers, 6 bytes. Nothing was removed" in text
    hostile = found.replace(leftovers=(found.leftovers[0].replace(place="s3://b/\x1b[31m\nx"),))
    assert len(list(table.lines(hostile))) == 4
    assert "\x1b" not in "".join(table.lines(hostile))
    summary = releases.collector().remove(found).summary()
    assert summary["totals"] == {"found": 1, "removed": 1, "found_bytes": 6, "removed_bytes": 6}


def test_an_object_that_cannot_be_removed_is_listed_as_left(releases: Releases) -> None:
    leftover = releases.put(releases.run())
    collector = releases.collector()
    found = collector.find()
    down = replace(releases.hook.server, tracking_uri="http://127.0.0.1:9")
    with MlflowRest(down) as rest:
        broken = releases.collector(rest=rest)
        with pytest.raises((Transient, Refused)):
            broken.find()
        result = broken.remove(found)
    assert (result.left, releases.keys(leftover)) == (1, ["MLmodel", "data/model.onnx"])
