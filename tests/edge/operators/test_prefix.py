"""Releases in a folder of a bucket that others use too."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import staging
from tests.edge.conftest import Services
from tests.edge.releasing import BUCKET, Release, versions_of
from tests.refusals import failed, refused


def keys(release: Release) -> list[str]:
    return sorted(S3Hook("minio_default").list_keys(BUCKET, prefix=f"team-{release.model_name}") or [])


def put(*others: str) -> list[str]:
    for key in others:
        S3Hook("minio_default").load_string("theirs", key, BUCKET)
    return sorted(others)


def test_all_objects_are_below_the_prefix_and_objects_beside_it_stay(
    hook: MlflowHook, services: Services, release: Release, judged: Release
) -> None:
    prefix = release.params["prefix"] = f"team-{release.model_name}"
    of_run = f"{prefix}/{release.model_name}/{release.training_run_id}"
    theirs = put(f"{prefix}-b/x", f"{prefix}/other/x", f"{prefix}/{release.model_name}/x", f"{of_run}/x")
    release.after(judged, "parity_latency").run("upload")
    assert all(key.startswith(f"{of_run}/") for key in set(keys(release)) - set(theirs))
    # An unfinished release: the clean-up removes its objects, and no others.
    release.clean()
    assert keys(release) == theirs
    version = release.run("upload", "register", "promote")
    release.clean()
    sha256 = release.returned["export"]["sha256"]
    assert version["source"] == f"s3://{BUCKET}/{of_run}/{sha256[:16]}"
    assert len(versions_of(hook, release)) == 1
    assert set(theirs) < set(keys(release))
    assert services.serve(f"models:/{release.model_name}@candidate") is not None


def test_deployments_with_other_prefixes_share_no_work_folder(tmp_path: Path) -> None:
    roots = {
        prefix: staging.staging_root_uri(tmp_path.as_uri(), prefix) for prefix in ("", "teams/churn", "teams/fraud")
    }
    uris = {prefix: staging.work_folder_uri(root, "release_onnx", "manual__1") for prefix, root in roots.items()}
    for uri in uris.values():
        staging.open_staging(uri).prepare(keep_s=3600.0)
    # Each folder is old for the next release of one prefix. Those of the others stay.
    following = staging.work_folder_uri(roots["teams/churn"], "release_onnx", "manual__2")
    staging.open_staging(following).prepare(keep_s=-1.0)
    left = {prefix for prefix, uri in uris.items() if Path(uri.removeprefix("file://")).is_dir()}
    assert (len(set(uris.values())), left) == (3, {"", "teams/fraud"})
    with refused("wrong_name", "prefix"):
        staging.staging_root_uri(tmp_path.as_uri(), "../other")


@pytest.mark.parametrize("folder", ["", "/{model}", "/{model}/{run}", "-b/{model}/{run}/0123456789abcdef"])
def test_a_folder_of_anything_else_is_not_deleted(
    hook: MlflowHook, release: Release, judged: Release, folder: str
) -> None:
    prefix = release.params["prefix"] = f"team-{release.model_name}"
    release.after(judged, "parity_latency")
    place = prefix + folder.format(model=release.model_name, run=release.training_run_id)
    theirs = put(f"{place}/x")
    release.pushed["target_uri"] = f"s3://{BUCKET}/{place}"
    with failed("not_an_artifact_folder"):
        release.clean()
    assert keys(release) == theirs
