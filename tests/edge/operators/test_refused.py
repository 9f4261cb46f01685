"""Refused models, bytes and names: the reason is logged to the training run, and no object or version is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pytest
import torch
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk.exceptions import AirflowFailException
from torch import nn

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import part_upload
from tests.edge.releasing import (
    SIGNATURE,
    Release,
    TwoHeads,
    assert_nothing_left,
    assert_refused,
    new_release,
    objects_of,
    trained_run,
    versions_of,
)
from tests.refusals import failed


def test_a_parity_failure_is_refused_with_its_evidence_and_a_rerun_with_other_limits_heals(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.params["parity"] = {"mae_max": 1e-12}
    with failed("benchmark_failed", "positions", "1e-12"):
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


def test_no_file_is_shipped_beside_a_large_one_that_changed(
    hook: MlflowHook, release: Release, judged: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.after(judged, "parity_latency")
    size = (release.artifact_folder / "model.onnx").stat().st_size
    monkeypatch.setattr(part_upload, "is_in_parts", lambda _, file: file.size_bytes >= size)
    with (release.artifact_folder / "model.onnx").open("r+b") as file:
        file.write(b"evil")
    with pytest.raises(AirflowFailException, match=r"model\.onnx changed"):
        release.run("upload")
    release.clean()
    assert_nothing_left(hook, release)


@pytest.mark.parametrize("missing", ["check", "parity_latency"])
def test_upload_refuses_without_a_report(hook: MlflowHook, release: Release, judged: Release, missing: str) -> None:
    release.after(judged, "parity_latency")
    release.returned[missing] = None
    with failed("missing_record", f"task '{missing}'"):
        release.run("upload")
    assert_nothing_left(hook, release)


def test_upload_refuses_reports_of_other_bytes_and_failed_ones(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency")
    good = release.returned["check"]
    release.returned["check"] = good | {"sha256": "0" * 64}
    with failed("not_accepted", "0" * 64):
        release.run("upload")
    release.returned["check"] = good | {"passed": False}
    with failed("not_accepted", "check"):
        release.run("upload")
    release.returned["check"] = good
    release.returned["parity_latency"]["latency"] = None
    with failed("not_accepted", "latency"):
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
    with failed("objects_changed"):
        release.run("promote")
    assert "candidate" not in hook.client.get_registered_model(release.model_name).aliases


@pytest.mark.parametrize("record", ["upload", "register"])
def test_the_promotion_refuses_records_of_other_bytes(
    hook: MlflowHook, release: Release, judged: Release, record: str
) -> None:
    """A partly cleared DAG run: a new export was judged, and objects or version are those of an earlier one."""
    release.after(judged, "parity_latency").run("upload", "register")
    release.returned[record] = release.returned[record] | {"sha256": "0" * 64}
    with failed("other_bytes", "0" * 64):
        release.run("promote")
    assert "candidate" not in hook.client.get_registered_model(release.model_name).aliases


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


def test_a_model_that_cannot_be_exported_is_refused(
    hook: MlflowHook, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("name", ["../other", "my model", "modèle"])
def test_a_hostile_model_name_is_refused_before_anything_is_made(hook: MlflowHook, run_id: str, name: str) -> None:
    release = Release(run_id, name)
    with failed("wrong_name", "model name"):
        release.to("wait")


class Branching(nn.Module):
    """Model with a branch on the values of its input, which no exported graph can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, signal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (B, 8) to two (B, 2), in one of two ways."""
        positions = self.linear(signal)
        if float(positions.sum()) > 0:
            return positions, positions
        return -positions, positions


def pickled_run(module: nn.Module, **more: Any) -> str:
    with mlflow.start_run() as run:
        mlflow.pytorch.log_model(
            module.eval(),
            name="model",
            signature=SIGNATURE,
            input_example=np.zeros((4, 8), np.float32),
            pip_requirements=["torch"],
            serialization_format="pickle",
            **more,
        )
    return str(run.info.run_id)
