"""A whole release on a real MLflow server and a real store: once, twice, and as its consumers see it."""

from __future__ import annotations

import json
import math
from typing import Any

import boto3
import mlflow
import numpy as np
import onnxruntime
import pytest
import torch
from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from airflow_onnx.events.model_assets import RELEASED_VERSIONS
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import s3
from onnx_release.artifact.digests import describe_folder
from onnx_release.cli.main import main
from onnx_release.limits import REFERENCE_FILE
from onnx_release.records import FileDigest
from onnx_release.samples.reference import read_reference, write_reference
from onnx_release.scratch import scratch_folder
from tests.edge.conftest import Services
from tests.edge.releasing import (
    Release,
    new_release,
    objects_of,
    trained_run,
    versions_of,
)


def test_a_trained_run_becomes_a_version_that_loads_and_agrees(
    hook: MlflowHook, services: Services, release: Release
) -> None:
    version = release.to("promote")
    release.clean()

    assert (version["version"], version["alias"]) == (1, "candidate")
    (event,) = release.events[RELEASED_VERSIONS].asset_alias_events
    assert event.dest_asset_key.name == f"models:/{release.model_name}@candidate"
    assert (event.extra["version"], event.extra["uri"]) == (1, version["source"])
    assert event.extra["sha256"] == version["sha256"]
    assert event.extra["contract"]["inputs"] == release.returned["export"]["inputs"]
    assert event.extra["figures"]["size_bytes"] == release.returned["export"]["size_bytes"]
    assert event.extra["figures"]["mae"] < 1e-5
    sha256 = release.returned["export"]["sha256"]
    uri = f"s3://heimdall-models/{release.model_name}/{release.training_run_id}/{sha256[:16]}"
    assert version["source"] == uri
    assert not release.artifact_folder.exists(), "the work folder is gone"
    names = {key.rsplit("/", 1)[1] for key in objects_of(release)}
    assert {"model.onnx", "MLmodel", "requirements.txt", "report.json", "report.html"} <= names

    stored = hook.client.get_model_version_by_alias(release.model_name, "candidate")
    assert stored.tags["onnx.sha256"] == sha256
    assert stored.tags["onnx.opset"] == str(release.returned["export"]["opset"])
    assert stored.tags["onnx.dag_run"].endswith(f"/dags/release_onnx/runs/{release.dag_run_id}")
    assert len(stored.tags) == 8
    assert stored.tags["onnx.status"].startswith("released")
    assert stored.description.startswith("Released")
    assert "positions" in stored.description
    run = hook.client.get_run(release.training_run_id)
    note = run.data.tags["mlflow.note.content"]
    assert "**Released" in note
    assert f"/#/models/{release.model_name}/versions/1)" in note
    assert f"/artifacts/onnx_release/{release.model_name}/report.html)" in note
    assert run.data.tags["onnx_release.status"] == "released"
    assert run.data.tags["onnx_release.version"] == "1"
    assert [name for name in run.data.metrics if name.startswith("onnx_release/")]

    served = services.serve(f"models:/{release.model_name}@candidate")
    signal = np.random.default_rng(3).standard_normal((5, 8)).astype(np.float32)
    got = served.predict({"signal": signal})
    program = torch.export.load(
        mlflow.artifacts.download_artifacts(f"{release.returned['wait']['model_uri']}") + "/data/model.pt2"
    )
    for name, expected in zip(("positions", "spread"), program.module()(torch.from_numpy(signal)), strict=True):
        np.testing.assert_allclose(got[name], expected.detach().numpy(), atol=1e-5)


def test_a_release_is_verified_without_pytorch_and_without_its_training_run(
    hook: MlflowHook, services: Services, release: Release, judged: Release, capsys: pytest.CaptureFixture[str]
) -> None:
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    version = f"models:/{release.model_name}@candidate"

    def verify(code: int) -> dict[str, tuple[str, str]]:
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in services.keys().items():
                patch.setenv(name, value)
            patch.setattr(boto3, "DEFAULT_SESSION", None)
            assert main(["verify", version, "--source", "s3://heimdall-models/", "--json"]) == code
        checks = json.loads(capsys.readouterr().out)["checks"]
        return {check["name"]: (check["verdict"], check["detail"]) for check in checks}

    assert {verdict for verdict, _ in verify(0).values()} == {"passed"}
    folder = s3.folder_at("minio_default", release.pushed["target_uri"])
    reference = next(one for one in release.returned["export"]["files"] if one["path"] == REFERENCE_FILE)
    with scratch_folder() as local:
        s3.fetch(folder, [FileDigest.from_dict(reference)], local)
        cases = read_reference(local)
        assert cases
        cases[0][1]["spread"] += 1
        write_reference(local, cases)
        (changed,) = describe_folder(local)
        s3.put(folder, local, changed, {})
    found = verify(1)
    assert {name for name, (verdict, _) in found.items() if verdict == "failed"} == {"files", "loads", "reference"}
    assert "'spread'" in found["reference"][1]
    assert "'positions'" not in found["reference"][1]


def test_every_record_in_xcom_is_plain_and_holds_no_secret(
    services: Services, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    text = json.dumps(release.returned)
    assert services.context.credentials.minio_secret_key not in text
    assert len(text) < 48_000, "XCom's rows stay small"


def test_a_second_release_makes_nothing_new_and_puts_nothing_again(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    release.clean()
    before = times_of_objects(release)
    again = Release(release.training_run_id, release.model_name, dag_run_id="manual__2")
    version = again.to("promote")
    again.clean()
    assert (version["version"], version["created"]) == (1, False)
    assert again.returned["export"]["sha256"] == release.returned["export"]["sha256"], "the same bytes on another day"
    assert before == times_of_objects(again)
    assert len(versions_of(hook, release)) == 1


def times_of_objects(release: Release) -> dict[str, Any]:
    """The time of each object but the report, which every release of the same bytes replaces."""
    client = S3Hook("minio_default").get_conn()
    keys = [key for key in objects_of(release) if not key.endswith(("/report.json", "/report.html"))]
    return {key: client.head_object(Bucket="heimdall-models", Key=key)["LastModified"] for key in keys}


def published(hook: MlflowHook, release: Release) -> dict[str, Any]:
    """The speedup of batch 1 as objects, version and training run have it, and their other figures of latency."""
    (version,) = versions_of(hook, release)
    run = hook.client.get_run(release.training_run_id)
    uri = f"runs:/{release.training_run_id}/onnx_release/{release.model_name}/report.json"
    (key,) = [key for key in objects_of(release) if key.endswith("/report.json")]
    stored = S3Hook("minio_default").read_key(key, "heimdall-models")
    assert json.loads(stored) == mlflow.artifacts.load_dict(uri), "one report"
    return {
        "report": json.loads(stored)["benchmark"]["latency"]["batches"][0]["speedup"],
        "speed": version.tags["onnx.speed"],
        "metrics": {
            name.removeprefix("onnx_release/latency/"): value
            for name, value in run.data.metrics.items()
            if name.startswith("onnx_release/latency/") and not math.isnan(value)
        },
        "description": version.description,
        "verdict": run.data.tags["onnx_release.latency_verdict"],
        "warning": run.data.tags.get("onnx_release.warning", ""),
    }


def test_a_second_release_of_the_same_bytes_leaves_one_truth(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency")
    latency = release.returned["parity_latency"]["latency"]
    latency |= {"verdict": "passed", "passed": True, "failures": [], "budget": latency["budget"] | {"batch_size": 1}}
    for number, batch in enumerate(latency["batches"], 2):
        batch |= {"speedup": number, "speedup_low": number - 0.5, "speedup_high": number + 0.5}
        batch |= {"conclusive": True, "cpu_wait_share": 0.0, "rounds": 1000}
    release.run("upload", "register", "promote")
    first = published(hook, release)
    assert (first["report"], first["metrics"]["batch_1/speedup"]) == (2, 2.0)
    assert (first["verdict"], first["speed"]) == ("passed", "2.00x [1.50, 2.50] at batch 1")
    assert first["warning"] == ""

    latency["verdict"] = "not settled"
    latency["batches"] = latency["batches"][:1]
    latency["batches"][0] |= {"speedup": 1932.0, "speedup_low": 0.5, "speedup_high": 4000.0, "conclusive": False}
    release.run("upload", "register", "promote")
    second = published(hook, release)
    assert second["report"] == 1932.0
    assert (second["verdict"], second["speed"]) == ("not settled", "not settled, at least 0.5x at batch 1")
    assert second["warning"] == "the speed at batch 1 is not settled, 0.5x to 4000x contains the limit 1x"
    assert {name for name in second["metrics"] if "speedup" in name} == {"batch_1/speedup_low"}
    assert [name for name in second["metrics"] if "batch_4" in name] == []
    assert "not settled" in second["description"]
    assert "1932" not in second["description"]


def test_each_task_may_run_twice(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    for name in ("wait", "prepare", "export", "tune", "check", "parity_latency", "upload", "register", "promote"):
        release.run(name, name)
    assert len(versions_of(hook, release)) == 1


def test_a_legacy_stage_is_set_on_request(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.params["stage"] = "Production"
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    assert versions_of(hook, release)[0].current_stage == "Production"


def test_a_hostile_run_name_is_data(hook: MlflowHook) -> None:
    release = new_release(trained_run(run_name="../../etc/passwd ünï\u202e"))
    assert release.to("promote")["version"] == 1
    assert all(key.startswith(f"{release.model_name}/{release.training_run_id}/") for key in objects_of(release))


def test_the_artifact_runs_in_bare_onnx_runtime(release: Release, judged: Release) -> None:
    release.after(judged, "export")
    session = onnxruntime.InferenceSession(release.artifact_folder / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"signal": np.zeros((7, 8), np.float32)})
    assert [output.shape for output in outputs] == [(7, 2), (7, 2)]
