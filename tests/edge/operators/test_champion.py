"""Promotion to the champion's alias: the measurement beside the champion, and the decision about it."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.operators.promote import MlflowPromoteModelOperator
from tests.edge.releasing import Release, new_release, tags_of
from tests.refusals import failed

PUBLISHED = ("upload", "register", "approve", "promote")


@pytest.fixture(scope="module")
def stored(judged: Release) -> Release:
    """A version whose files a champion of another model shares."""
    release = new_release(judged.training_run_id)
    release.after(judged, "parity_latency").run("upload", "register")
    return release


def with_champion(hook: MlflowHook, release: Release, stored: Release) -> None:
    """Give the release's model a champion of an older training run."""
    version = stored.returned["register"]
    tags = dict(hook.client.get_model_version(version["name"], "1").tags)
    run_id = hook.client.create_run("0").info.run_id
    hook.client.set_terminated(run_id, "FINISHED", 1)
    hook.client.create_registered_model(release.model_name)
    hook.client.create_model_version(release.model_name, version["source"], run_id, tags, await_creation_for=0)
    hook.client.set_registered_model_alias(release.model_name, "champion", "1")


def aliases(hook: MlflowHook, release: Release) -> dict[str, str]:
    return dict(hook.client.get_registered_model(release.model_name).aliases)


def test_the_first_version_becomes_the_champion(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.params["promotion"] = "auto"
    release.after(judged, "parity_latency").run(*PUBLISHED)
    assert aliases(hook, release) == {"candidate": "1", "champion": "1"}
    assert "approve" in release.skipped


def test_a_model_that_is_not_worse_becomes_the_champion_unless_the_champion_has_changed(
    hook: MlflowHook, release: Release, judged: Release, stored: Release
) -> None:
    with_champion(hook, release, stored)
    release.params |= {"promotion": "auto", "margins": {"margin": "0.95", "metric_loss_max": "0.01"}}
    release.after(judged, "check").run("parity_latency")
    compared = release.returned["parity_latency"]["champion"]
    assert (compared["version"], compared["problem"], compared["passed"]) == (1, "", True)
    assert compared["champion_sha256"] == stored.returned["register"]["sha256"]
    assert compared["agreement"]["positions"]["mae"] == 0.0
    assert compared["parity"]["positions"]["mae"] < 1e-5
    assert all(batch["champion"] for batch in release.returned["parity_latency"]["latency"]["batches"])

    release.run("upload", "register")
    other = hook.client.create_model_version(
        release.model_name, stored.returned["register"]["source"], hook.client.create_run("0").info.run_id,
        dict(hook.client.get_model_version(release.model_name, "1").tags), await_creation_for=0,
    )  # fmt: skip
    hook.client.set_terminated(other.run_id, "FINISHED", 2)
    hook.client.set_registered_model_alias(release.model_name, "champion", other.version)
    assert release.run("promote")["alias"] == "candidate"
    assert "was not compared with this version" in tags_of(hook, release.training_run_id)["alias_note"]
    hook.client.set_registered_model_alias(release.model_name, "champion", "1")
    assert release.run("promote")["alias"] == "candidate, champion"
    assert isinstance(release.tasks["promote"], MlflowPromoteModelOperator)


@pytest.mark.parametrize("promotion", ["auto", "approve"])
def test_a_champion_with_other_bytes_refuses_auto_and_is_shown_to_a_person(
    hook: MlflowHook, release: Release, judged: Release, stored: Release, promotion: str
) -> None:
    with_champion(hook, release, stored)
    key = f"{stored.returned['register']['source'].removeprefix('s3://heimdall-models/')}/model.onnx"
    store = S3Hook("minio_default")
    before = store.get_key(key, "heimdall-models").get()["Body"].read()
    store.load_bytes(b"other", key, "heimdall-models", replace=True)
    release.params["promotion"] = promotion
    release.after(judged, "check")
    try:
        if promotion == "auto":
            with failed("benchmark_failed", "champion: against version 1, it was not measured", "model.onnx"):
                release.run("parity_latency")
            assert tags_of(hook, release.training_run_id)["status"] == "refused"
        else:
            report: dict[str, Any] = release.run("parity_latency")
            assert report["passed"]
            assert "it was not measured" in report["champion"]["warnings"][0]
    finally:
        store.load_bytes(before, key, "heimdall-models", replace=True)


def test_a_missed_speed_asks_a_person(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.params |= {"on_miss": "ask", "budget": {"speedup_min": "1e6"}}
    release.after(judged, "check").run("parity_latency", "upload", "register")
    assert release.skipped == {"tune"}
    with failed("no_approval", "the speed misses a limit, and the parameter on_miss is ask"):
        release.run("promote")
    assert aliases(hook, release) == {}
