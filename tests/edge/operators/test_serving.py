"""Files for those who serve: other runtimes in the report and a tag, and layouts of model servers in the store."""

from __future__ import annotations

import json

import onnxruntime
import pytest
import yaml

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import s3
from airflow_onnx.storage.serving_layouts import layouts_folder
from onnx_release.errors import Transient
from onnx_release.records import S3Object
from onnx_release.serving.runtime_environment import installed_version
from tests.edge.releasing import Release

LAYOUTS = {"serving_layouts": '["kserve"]'}


def _folder(release: Release) -> s3.S3Folder:
    return layouts_folder(s3.folder_at("minio_default", release.pushed["target_uri"]))


def test_a_release_is_tested_in_another_runtime_and_has_layouts_of_the_same_bytes(
    hook: MlflowHook, release: Release, judged: Release, tmp_path_factory: pytest.TempPathFactory
) -> None:
    release.params |= LAYOUTS | {"target_runtimes": json.dumps([installed_version()])}
    release.after(judged, "check")
    release.run("parity_latency", "upload")
    first = s3.listing(_folder(release))
    uploaded = S3Object.from_dict(release.run("upload", "register", "promote") and release.returned["upload"])

    (runtime,) = release.returned["parity_latency"]["runtimes"]
    assert (runtime["version"], runtime["loads"], runtime["passed"]) == (installed_version(), True, True)
    triton, kserve = uploaded.layouts
    root = f"triton/{release.model_name}"
    assert {file.path for file in triton.files} == {f"{root}/config.pbtxt", f"{root}/1/model.onnx"}
    judged_file = next(file for file in uploaded.files if file.path == "model.onnx")
    assert next(file for file in triton.files if file.path.endswith("model.onnx")).sha256 == judged_file.sha256

    folder = _folder(release)
    # A second upload of the same bytes puts nothing again.
    found = s3.listing(folder)
    assert {path: item["LastModified"] for path, item in found.items()} == {
        path: item["LastModified"] for path, item in first.items()
    }
    local = tmp_path_factory.mktemp("fetched")
    s3.fetch(folder, [*triton.files, *kserve.files], local)
    session = onnxruntime.InferenceSession(local / root / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["signal"]
    manifest = yaml.safe_load((local / "kserve/inference_service.yaml").read_text())
    assert manifest["spec"]["predictor"]["model"]["storageUri"] == triton.uri == f"{folder.uri}/triton"

    version = hook.client.get_model_version(release.model_name, str(release.returned["promote"]["version"]))
    assert version.tags["onnx.runtimes"] == installed_version()
    assert version.tags["onnx.serving"] == f"{triton.uri}, {kserve.uri}"
    report = json.loads(s3.read_text(s3.folder_at("minio_default", uploaded.uri), "report.json"))
    assert [layout["uri"] for layout in report["serving"]] == [triton.uri, kserve.uri]
    assert f"ONNX Runtime {installed_version()}" in {gate["subject"] for gate in report["gates"]}
    assert triton.uri in version.description


def test_the_layouts_of_an_unfinished_release_are_removed(release: Release, judged: Release) -> None:
    release.params |= LAYOUTS
    release.after(judged, "parity_latency")
    release.run("upload")
    s3.put_text(_folder(release), "triton/stray.json", "{}")
    release.run("upload")
    assert "triton/stray.json" not in s3.sizes(_folder(release))
    release.clean()
    assert s3.sizes(_folder(release)) == {}


def test_a_runtime_that_cannot_be_installed_is_the_deployments_fault(
    hook: MlflowHook, release: Release, judged: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    release.params |= {"target_runtimes": ["1.2.3"]}
    release.after(judged, "check")
    # Without an index pip lists no version, which a later try may heal.
    with pytest.raises(Transient, match=r"ONNX Runtime 1\.2\.3"):
        release.run("parity_latency")
    assert hook.client.get_run(release.training_run_id).data.tags.get("onnx_release.status") != "refused"
