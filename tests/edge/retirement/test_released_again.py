"""A training run whose version was retired is released again."""

from __future__ import annotations

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import s3
from onnx_release.training_runs import tags
from tests.edge.releasing import BUCKET, Release, objects_of, tags_of, versions_of
from tests.edge.retirement.conftest import Registry, going


def test_the_same_bytes_become_a_new_version(
    hook: MlflowHook, release: Release, judged: Release, registry: Registry
) -> None:
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    (first,) = versions_of(hook, release)
    before = objects_of(release)
    assert before
    hook.client.delete_registered_model_alias(release.model_name, "candidate")
    for tag in registry.rest.registered_model(release.model_name).tags:
        # The move of just now keeps the version.
        hook.client.delete_registered_model_tag(release.model_name, tag)
    registry.age(release.model_name, int(first.version), 200)
    folder = s3.folder_at("minio_default", f"s3://{BUCKET}", rerun=None)
    retirer = registry.retirer(folder=folder, models=(release.model_name,))
    found = retirer.run(dry_run=False)
    assert (going(found), found.left) == ([1], 0)
    assert (objects_of(release), versions_of(hook, release)) == ([], [])
    assert tags_of(hook, release.training_run_id)["status"] == "retired"

    release.run("upload", "register", "promote")
    (again,) = versions_of(hook, release)
    assert (int(again.version), again.tags[tags.VERSION_SHA256]) == (2, first.tags[tags.VERSION_SHA256])
    assert objects_of(release) == before
    recorded = tags_of(hook, release.training_run_id)
    assert (recorded["status"], recorded["version"], recorded["alias"]) == ("released", "2", "candidate")
    assert recorded["retired"].startswith(f"version 1 of {release.model_name} at ")
