"""Promotion to the champion's alias: the measurement beside the champion, and the decision about it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.operators.promote import MlflowPromoteModelOperator
from airflow_onnx.tracking.champion import find_champion
from airflow_onnx.tracking.promotion import Candidate, MoveRules, Promoter
from onnx_release.records import Contract, OnnxArtifact
from tests.edge.releasing import BUCKET, SIGNATURE, Release, new_release, tags_of
from tests.edge.tracking.test_contract import logged
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


def evaluation(stored: Release) -> str:
    """Put an evaluation sample into the store, whose targets are not the outputs of the model."""
    rows = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    file = io.BytesIO()
    np.savez(file, **{"signal": rows, "target.positions": rows[:, :2]})
    key = f"test/{stored.model_name}/evaluation.npz"
    S3Hook("minio_default").load_bytes(file.getvalue(), key, "heimdall-models", replace=True)
    return f"s3://heimdall-models/{key}"


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
    release.params["evaluation_uri"] = evaluation(stored)
    release.after(judged, "check").run("parity_latency")
    compared = release.returned["parity_latency"]["champion"]
    assert (compared["version"], compared["problem"], compared["passed"]) == (1, "", True)
    assert compared["champion_sha256"] == stored.returned["register"]["sha256"]
    assert compared["agreement"]["positions"]["mae"] == 0.0
    assert compared["parity"]["positions"]["mae"] < 1e-5
    (metric,) = compared["metrics"]
    assert (metric["output"], metric["name"], metric["loss"]) == ("positions", "MAE", 0.0)
    assert metric["champion"] == metric["candidate"] > 0
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


def test_a_speed_that_is_not_settled_against_the_champion_refuses_or_asks(
    hook: MlflowHook, release: Release, judged: Release, stored: Release
) -> None:
    with_champion(hook, release, stored)
    # The same bytes are never proven to be as fast as themselves.
    release.params |= {"promotion": "auto", "on_miss": "refuse", "margins": {"margin": "0"}}
    release.after(judged, "check")
    with failed("benchmark_failed", "champion: against version 1, the speed at batch"):
        release.run("parity_latency")
    release.params["on_miss"] = "ask"
    release.run("parity_latency", "upload", "register")
    with failed("no_approval", "the speed is not settled, and the parameter on_miss is ask"):
        release.run("promote")
    assert aliases(hook, release) == {"champion": "1"}


def found(hook: MlflowHook, release: Release, stored: Release, folder: Path, *, ended_at_ms: int = 2) -> Any:
    """Return the options of the comparison for a candidate with the contract of the champion."""
    artifact = OnnxArtifact.from_dict(stored.returned["export"])
    promoter = Promoter(hook=hook, s3_conn_id="minio_default", rules=MoveRules(contract_change="allow"))
    candidate = Candidate(
        model_name=release.model_name, contract=Contract.of_artifact(artifact),
        training_run_id=release.training_run_id, ended_at_ms=ended_at_ms,
    )  # fmt: skip
    return find_champion(promoter, candidate, "champion", artifact.sha256, folder, [BUCKET])


def test_a_champion_that_cannot_be_measured_has_the_reason(
    hook: MlflowHook, release: Release, stored: Release, tmp_path: Path
) -> None:
    name = release.model_name
    assert found(hook, release, stored, tmp_path) is None, "the model does not exist"
    with_champion(hook, release, stored)
    assert found(hook, release, stored, tmp_path, ended_at_ms=0) is None, "the champion is newer"
    assert found(hook, release, stored, tmp_path).problem == ""

    run_id, sha256 = hook.client.create_run("0").info.run_id, stored.returned["register"]["sha256"]
    hook.client.set_terminated(run_id, "FINISHED", 1)
    gone = {"onnx.sha256": sha256}
    hook.client.create_model_version(name, "s3://heimdall-models/test/gone", run_id, gone, await_creation_for=0)
    hook.client.set_registered_model_alias(name, "champion", "2")
    assert found(hook, release, stored, tmp_path / "2").problem == "its inputs and outputs are unknown"
    release.after(stored, "export").params["promotion"] = "auto"
    with failed("contract_unknown", "Version 2", "contract_change"):
        release.run("check")

    trained = mlflow.register_model(logged(SIGNATURE), name)
    hook.client.set_registered_model_alias(name, "champion", trained.version)
    assert "has no sha256" in found(hook, release, stored, tmp_path / "3", ended_at_ms=2**42).problem

    source = stored.returned["register"]["source"]
    hook.client.create_model_version(name, source, release.training_run_id, gone, await_creation_for=0)
    hook.client.set_registered_model_alias(name, "champion", "4")
    assert found(hook, release, stored, tmp_path / "4") is None, "the same bytes of the same training run"
