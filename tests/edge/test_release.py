"""A whole release on a real MLflow server and a real store, and every way in which it is refused."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from torch import nn

from airflow_onnx.hooks.mlflow import MlflowHook

from .conftest import Services
from .releasing import Release, TwoHeads, trained_run


@pytest.fixture(scope="module", autouse=True)
def staging(connections: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stage below a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__ONNX_RELEASE__STAGING_URI", tmp_path_factory.mktemp("staging").as_uri())
        yield


@pytest.fixture(scope="module")
def judged(staging: None) -> Release:
    """A trained run, released as far as the verdict; the tests go on from copies of it, each under its own name."""
    _ = MlflowHook("mlflow_default").client
    mlflow.set_experiment("release")
    done = Release(trained_run(), "template")
    done.to("parity_latency")
    return done


@pytest.fixture
def hook(hook: MlflowHook) -> MlflowHook:
    """The hook, with MLflow's fluent API pointed at the same server."""
    _ = hook.client
    mlflow.set_experiment("release")
    return hook


@pytest.fixture
def run_id(judged: Release) -> str:
    return judged.training_run_id


@pytest.fixture
def release(hook: MlflowHook, run_id: str) -> Release:
    """A release that has not begun."""
    return new_release(run_id)


def new_release(run_id: str) -> Release:
    name = f"model-{uuid.uuid4().hex[:8]}"
    return Release(run_id, name, dag_run_id=f"manual__{name}")


def objects_of(release: Release) -> list[str]:
    keys = S3Hook("minio_default").list_keys("heimdall-models", prefix=f"{release.model_name}/")
    return sorted(keys or [])


def versions_of(hook: MlflowHook, release: Release) -> list[Any]:
    return list(hook.client.search_model_versions(f"name='{release.model_name}'"))


def assert_nothing_left(hook: MlflowHook, release: Release) -> None:
    assert objects_of(release) == []
    assert versions_of(hook, release) == []


def assert_refused(hook: MlflowHook, release: Release, *words: str) -> dict[str, Any]:
    """Check that the training run says refused, and why; return the report that lies on it."""
    tags = hook.client.get_run(release.training_run_id).data.tags
    assert tags["onnx_release.status"] == "refused"
    for word in words:
        assert word in tags["onnx_release.reason"]
    text = mlflow.artifacts.load_text(f"runs:/{release.training_run_id}/onnx_release/{release.model_name}/report.json")
    report: dict[str, Any] = json.loads(text)
    assert report["status"] == "refused"
    return report


def test_a_trained_run_becomes_a_version_that_loads_and_agrees(
    hook: MlflowHook, services: Services, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = release.to("promote")
    release.clean()

    assert (version["version"], version["alias"]) == (1, "candidate")
    sha256 = release.returned["export"]["sha256"]
    uri = f"s3://heimdall-models/{release.model_name}/{release.training_run_id}/{sha256[:16]}"
    assert version["source"] == uri
    assert not release.artifact_folder.exists(), "the work folder is gone"
    names = {key.rsplit("/", 1)[1] for key in objects_of(release)}
    assert {"model.onnx", "MLmodel", "requirements.txt", "report.json"} <= names

    stored = hook.client.get_model_version_by_alias(release.model_name, "candidate")
    assert stored.tags["onnx.sha256"] == sha256
    assert stored.tags["onnx.opset"] == str(release.returned["export"]["opset"])
    assert stored.tags["onnx.dag_run_url"].endswith(f"/dags/release_onnx/runs/{release.dag_run_id}")
    assert len([key for key in stored.tags if key.startswith("onnx.sha256.")]) == len(names)
    assert "positions" in stored.description
    run = hook.client.get_run(release.training_run_id)
    assert run.data.tags["onnx_release.status"] == "released"
    assert run.data.tags["onnx_release.version"] == "1"
    assert [name for name in run.data.metrics if name.startswith("onnx_release/")]

    for name, value in (
        ("MLFLOW_S3_ENDPOINT_URL", services.context.minio_url),
        ("AWS_ACCESS_KEY_ID", services.context.credentials.minio_access_key),
        ("AWS_SECRET_ACCESS_KEY", services.context.credentials.minio_secret_key),
    ):
        monkeypatch.setenv(name, value)
    served = mlflow.pyfunc.load_model(f"models:/{release.model_name}@candidate")
    signal = np.random.default_rng(3).standard_normal((5, 8)).astype(np.float32)
    got = served.predict({"signal": signal})
    program = torch.export.load(
        mlflow.artifacts.download_artifacts(f"{release.returned['wait']['model_uri']}") + "/data/model.pt2"
    )
    for name, expected in zip(("positions", "spread"), program.module()(torch.from_numpy(signal)), strict=True):
        np.testing.assert_allclose(got[name], expected.detach().numpy(), atol=1e-5)


def test_every_record_in_xcom_is_plain_and_holds_no_secret(services: Services, release: Release) -> None:
    release.to("promote")
    text = json.dumps(release.returned)
    assert services.context.credentials.minio_secret_key not in text
    assert len(text) < 48_000, "XCom's rows stay small"


def test_a_second_release_makes_nothing_new_and_puts_nothing_again(hook: MlflowHook, release: Release) -> None:
    release.to("promote")
    release.clean()
    client = S3Hook("minio_default").get_conn()
    before = {key: client.head_object(Bucket="heimdall-models", Key=key)["LastModified"] for key in objects_of(release)}
    again = Release(release.training_run_id, release.model_name, dag_run_id="manual__2")
    version = again.to("promote")
    again.clean()
    assert (version["version"], version["created"]) == (1, False)
    assert again.returned["export"]["sha256"] == release.returned["export"]["sha256"], "the same bytes on another day"
    assert before == {
        key: client.head_object(Bucket="heimdall-models", Key=key)["LastModified"] for key in objects_of(again)
    }
    assert len(versions_of(hook, release)) == 1


def test_each_task_may_run_twice(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    for name in ("wait", "prepare", "export", "check", "parity_latency", "upload", "register", "promote"):
        release.run(name, name)
    assert len(versions_of(hook, release)) == 1


def test_a_legacy_stage_is_set_on_request(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.params["stage"] = "Production"
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    assert versions_of(hook, release)[0].current_stage == "Production"


def test_a_parity_failure_is_refused_with_its_evidence_and_a_rerun_with_other_limits_heals(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.params["parity"] = {"mae_max": 1e-12}
    with pytest.raises(AirflowFailException, match=r"positions.*1e-12"):
        release.after(judged, "check").run("parity_latency")
    release.clean()
    report = assert_refused(hook, release, "parity", "positions")
    assert report["benchmark"]["parity"]["passed"] is False
    assert report["check"]["passed"] is True
    assert_nothing_left(hook, release)

    release.params["parity"] = {}
    release.run("parity_latency", "upload", "register", "promote")
    assert hook.client.get_run(release.training_run_id).data.tags["onnx_release.status"] == "released"
    assert len(versions_of(hook, release)) == 1


def test_a_graph_that_was_changed_after_the_export_is_refused(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "export")
    path = release.artifact_folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].domain = "evil.example"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(AirflowFailException, match=r"model\.onnx"):
        release.run("check")
    release.clean()
    report = assert_refused(hook, release, "check")
    assert any(finding["severity"] == "error" for finding in report["check"]["findings"])
    assert_nothing_left(hook, release)


def test_bytes_that_change_after_the_verdict_are_not_shipped(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency")
    (release.artifact_folder / "requirements.txt").write_text("evil\n")
    with pytest.raises(AirflowFailException, match=r"requirements\.txt"):
        release.run("upload")
    release.clean()
    assert_nothing_left(hook, release)


@pytest.mark.parametrize("missing", ["check", "parity_latency"])
def test_upload_refuses_without_a_report(hook: MlflowHook, release: Release, judged: Release, missing: str) -> None:
    release.after(judged, "parity_latency")
    release.returned[missing] = None
    with pytest.raises(AirflowFailException, match=f"task '{missing}'"):
        release.run("upload")
    assert_nothing_left(hook, release)


def test_upload_refuses_reports_of_other_bytes_and_failed_ones(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency")
    good = release.returned["check"]
    release.returned["check"] = good | {"sha256": "0" * 64}
    with pytest.raises(AirflowFailException, match="another artifact"):
        release.run("upload")
    release.returned["check"] = good | {"passed": False}
    with pytest.raises(AirflowFailException, match="check did not pass"):
        release.run("upload")
    release.returned["check"] = good
    release.returned["parity_latency"]["latency"] = None
    with pytest.raises(AirflowFailException, match="latency was not measured"):
        release.run("upload")
    assert_nothing_left(hook, release)


def test_objects_that_change_after_the_upload_are_not_registered(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency").run("upload")
    key = next(key for key in objects_of(release) if key.endswith("/model.onnx"))
    S3Hook("minio_default").load_bytes(b"not the tested bytes", key, "heimdall-models", replace=True)
    with pytest.raises(AirflowFailException, match=r"model\.onnx"):
        release.run("register")
    release.clean()
    assert_nothing_left(hook, release)


def test_objects_that_vanish_before_the_promotion_are_noticed(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency").run("upload", "register")
    S3Hook("minio_default").get_conn().delete_object(Bucket="heimdall-models", Key=objects_of(release)[0])
    with pytest.raises(AirflowFailException, match="are gone or changed"):
        release.run("promote")
    assert "candidate" not in hook.client.get_registered_model(release.model_name).aliases


def test_a_missing_bucket_is_refused(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.params["bucket"] = "no-such-bucket"
    with pytest.raises(AirflowFailException, match="Create the bucket"):
        release.after(judged, "parity_latency").run("upload")
    release.clean()
    assert_refused(hook, release, "no-such-bucket")
    assert_nothing_left(hook, release)


def test_wrong_keys_are_refused(
    hook: MlflowHook, release: Release, judged: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.after(judged, "parity_latency")
    wrong = json.loads(os.environ["AIRFLOW_CONN_MINIO_DEFAULT"]) | {"password": "wrong"}
    with monkeypatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_MINIO_DEFAULT", json.dumps(wrong))
        with pytest.raises(AirflowFailException, match="Check the key"):
            release.run("upload")
    release.clean()
    assert_nothing_left(hook, release)


def test_an_outage_of_the_store_is_retried_and_leaves_nothing(
    hook: MlflowHook, release: Release, judged: Release, services: Services
) -> None:
    release.after(judged, "parity_latency")
    services.stop("minio")
    try:
        with pytest.raises(AirflowException, match="cannot be reached") as raised:
            release.run("upload")
    finally:
        services.start("minio")
    assert not isinstance(raised.value, AirflowFailException)
    assert_nothing_left(hook, release)
    assert release.run("upload", "register", "promote")["version"] == 1


def test_an_outage_of_mlflow_is_retried_and_the_clean_up_waits_for_it(
    hook: MlflowHook, release: Release, judged: Release, services: Services
) -> None:
    release.after(judged, "parity_latency").run("upload")
    services.stop("mlflow")
    try:
        with pytest.raises(AirflowException) as raised:
            release.run("register")
        with pytest.raises(AirflowException) as cleaning:
            release.clean()
    finally:
        services.start("mlflow")
    assert not isinstance(raised.value, AirflowFailException)
    assert not isinstance(cleaning.value, AirflowFailException)
    assert objects_of(release), "whether a version names them could not be known"
    release.clean()
    assert_nothing_left(hook, release)


def test_a_registry_that_refuses_the_source_is_explained_and_leaves_nothing(
    hook: MlflowHook, release: Release, judged: Release, services: Services
) -> None:
    release.after(judged, "parity_latency").run("upload")
    services.stop("mlflow")
    services.start("mlflow", MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX="^s3://elsewhere/.*$")
    try:
        with pytest.raises(AirflowFailException, match="SOURCE_VALIDATION_REGEX"):
            release.run("register")
        release.clean()
    finally:
        services.stop("mlflow")
        services.start("mlflow")
    assert_refused(hook, release, "heimdall-models")
    assert_nothing_left(hook, release)


def test_the_clean_up_leaves_objects_that_a_version_names(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.after(judged, "parity_latency").run("upload", "register")
    release.clean()
    assert objects_of(release)
    assert release.run("promote")["alias"] == "candidate"


def test_weights_with_nan_are_refused_by_name(hook: MlflowHook) -> None:
    torch.manual_seed(0)
    module = TwoHeads()
    with torch.no_grad():
        module.positions.weight[0, 0] = float("nan")
    release = new_release(trained_run(module=module))
    with pytest.raises(AirflowFailException, match=r"positions\.weight"):
        release.to("export")
    release.clean()
    assert_refused(hook, release, "positions.weight")
    assert_nothing_left(hook, release)


def test_a_model_that_cannot_be_exported_is_refused(hook: MlflowHook, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = pickled_run(Branching())
    release = new_release(run_id)
    with pytest.raises(AirflowFailException, match="allow_pickle"):
        release.to("export")
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE", "True")
    with pytest.raises(AirflowFailException, match=r"[Ee]xport"):
        release.to("export")
    release.clean()
    assert_refused(hook, release, "xport")
    assert_nothing_left(hook, release)


def test_a_corrupted_model_file_is_refused(hook: MlflowHook, release: Release, tmp_path: Path) -> None:
    release.to("wait")
    folder = hook.download(release.returned["wait"]["model_uri"], tmp_path / "copy")
    data = folder / "data" / "model.pt2"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(folder), "model")
    broken = Release(run.info.run_id, release.model_name)
    with pytest.raises(AirflowFailException, match=r"model\.pt2"):
        broken.to("export")
    broken.clean()
    assert_refused(hook, broken, "model.pt2")
    assert_nothing_left(hook, broken)


@pytest.mark.parametrize("name", ["../other", "my model", "modèle", ""])
def test_a_hostile_model_name_is_refused_before_anything_is_made(hook: MlflowHook, run_id: str, name: str) -> None:
    release = Release(run_id, name)
    with pytest.raises(AirflowFailException, match="model name"):
        release.to("export")
    release.clean()


def test_a_hostile_run_name_is_data(hook: MlflowHook) -> None:
    release = new_release(trained_run(run_name="../../etc/passwd ünï\u202e"))
    assert release.to("promote")["version"] == 1
    assert all(key.startswith(f"{release.model_name}/{release.training_run_id}/") for key in objects_of(release))


def test_the_artifact_runs_in_bare_onnx_runtime(release: Release, judged: Release) -> None:
    release.after(judged, "export")
    session = onnxruntime.InferenceSession(release.artifact_folder / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"signal": np.zeros((7, 8), np.float32)})
    assert [output.shape for output in outputs] == [(7, 2), (7, 2)]


class Branching(nn.Module):
    """Its path depends on the values that it is given, which no exported graph can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, signal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (B, 8) to two (B, 2), in one of two ways."""
        positions = self.linear(signal)
        if float(positions.sum()) > 0:
            return positions, positions
        return -positions, positions


def pickled_run(module: nn.Module) -> str:
    from .releasing import SIGNATURE

    with mlflow.start_run() as run:
        mlflow.pytorch.log_model(
            module.eval(),
            name="model",
            signature=SIGNATURE,
            input_example=np.zeros((4, 8), np.float32),
            pip_requirements=["torch"],
            serialization_format="pickle",
        )
    return str(run.info.run_id)
