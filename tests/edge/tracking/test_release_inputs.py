"""Releases of weights with a factory, TorchScript and pickles, and of a user's own test inputs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk.exceptions import AirflowFailException

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.tracking import training_run
from airflow_onnx.tracking.release_inputs import ReleaseInputs
from onnx_release.training_runs import tags
from tests.edge.releasing import SIGNATURE, Release, TwoHeads, assert_refused, new_release, trained_run
from tests.refusals import failed, refused

INPUTS = json.dumps([{"name": "signal", "dtype": "float32", "shape": ["batch", 8], "low": -2, "high": 2}])
FACTORY = "tests.edge.releasing:TwoHeads"


@pytest.fixture(autouse=True)
def _staged(staging: None) -> None:
    """Stage every release of this module below the tests' folder."""


@pytest.fixture
def factories(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow factories of this test package."""
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__FACTORY_PACKAGES", "some.other, tests.edge")


def weights_run(*paths: str, tags: dict[str, str] | None = None) -> str:
    """Log a state dict under these paths, and no model."""
    torch.manual_seed(0)
    state = TwoHeads().eval().state_dict()
    with mlflow.start_run(tags=tags) as run, tempfile.TemporaryDirectory() as scratch:
        for path in paths:
            local = Path(scratch, Path(path).name)
            torch.save({"state_dict": state, "epoch": 3}, local)
            mlflow.log_artifact(str(local), str(Path(path).parent) if "/" in path else None)
    return str(run.info.run_id)


def _trained_model(hook: MlflowHook, run_id: str) -> Any:
    return training_run.find_trained_model(hook, run_id)


def test_weights_with_tags_for_factory_and_inputs_are_released(hook: MlflowHook, factories: None) -> None:
    run_id = weights_run(
        "model/state_dict.pth", tags={"onnx_release.factory": FACTORY, "onnx_release.input_spec": INPUTS}
    )
    release = new_release(run_id)
    assert release.to("promote")["version"] == 1
    release.clean()
    assert release.returned["wait"]["model_uri"] == f"runs:/{run_id}/model/state_dict.pth"
    report = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/onnx_release/{release.model_name}/report.json"))
    assert report["trained_model"]["chosen"] == "the run logged no model; the file model/state_dict.pth"
    assert report["artifact"]["trained_format"] == "state_dict"
    assert [attempt["outcome"] for attempt in report["artifact"]["attempts"]] == ["taken"]


def test_the_key_of_the_weights_comes_from_the_parameter_or_the_tag(hook: MlflowHook) -> None:
    run_id = weights_run("out/w.ckpt", tags={"onnx_release.weights_key": "ema"})
    found = _trained_model(hook, run_id)
    by_tag = ReleaseInputs(hook, found, {"factory": "", "weights_key": ""}).factory()
    by_parameter = ReleaseInputs(hook, found, {"factory": FACTORY, "weights_key": "state_dict"}).factory()
    assert by_tag is not None
    assert by_parameter is not None
    assert (by_tag.path, by_tag.weights_key, by_parameter.weights_key) == ("", "ema", "state_dict")


@pytest.mark.parametrize(
    ("tag", "pairs"),
    [
        ("", {}),
        ("positions:uncertainties", {"positions": "uncertainties"}),
        (" a : b, c:d ", {"a": "b", "c": "d"}),
        ("positions", None),
        ("a:b:c", None),
        ("a:,b:c", None),
        ("a:b,a:c", None),
        ("../x\n:<b>,", None),
    ],
)
def test_the_outputs_with_uncertainties_come_from_the_tag(
    hook: MlflowHook, tag: str, pairs: dict[str, str] | None
) -> None:
    source = ReleaseInputs(hook, _trained_model(hook, weights_run("w.ckpt", tags={tags.UNCERTAINTY_OF: tag})), {})
    if pairs is not None:
        assert source.uncertainty_of() == pairs
        return
    with refused("uncertainty_tag", "positions:uncertainties"):
        source.uncertainty_of()


def test_a_factory_that_the_deployment_does_not_allow_is_refused(hook: MlflowHook) -> None:
    release = new_release(weights_run("model/state_dict.pth"))
    release.params = {"source": {"factory": FACTORY, "input_spec": INPUTS}}
    with pytest.raises(AirflowFailException, match="no package that this deployment allows"):
        release.to("export")
    assert_refused(hook, release, "factory_packages")


@pytest.mark.parametrize(
    ("paths", "chosen"),
    [
        (["checkpoints/last.ckpt", "checkpoints/best-7.ckpt"], "checkpoints/best-7.ckpt"),
        (["out/a.pth", "out/a.ckpt"], "out/a.ckpt"),
        (["deep/er/est/w.pt"], "deep/er/est/w.pt"),
    ],
)
def test_of_several_files_the_preferred_one_is_chosen(hook: MlflowHook, paths: list[str], chosen: str) -> None:
    run_id = weights_run(*paths)
    assert _trained_model(hook, run_id).model_uri == f"runs:/{run_id}/{chosen}"


def test_files_that_match_equally_well_are_refused_with_their_names(hook: MlflowHook) -> None:
    run_id = weights_run("a/one.ckpt", "b/two.ckpt")
    with refused("several_model_files", "a/one.ckpt, b/two.ckpt", "model_uri = runs:/"):
        _trained_model(hook, run_id)


def test_a_model_is_preferred_to_weights(hook: MlflowHook) -> None:
    run_id = trained_run()
    hook.client.log_text(run_id, "no weights", "checkpoints/best.ckpt")
    found = _trained_model(hook, run_id)
    assert found.model_uri.startswith("models:/m-")
    assert found.chosen.startswith("the only logged model")


def test_a_torchscript_model_is_released_without_allow_pickle(hook: MlflowHook) -> None:
    scripted = torch.jit.script(TwoHeads().eval())
    with mlflow.start_run() as run:
        mlflow.pytorch.log_model(
            scripted, name="model", signature=SIGNATURE, pip_requirements=["torch"], serialization_format="pickle"
        )
    release = new_release(run.info.run_id)
    assert release.to("parity_latency")["parity"]["passed"]
    assert (release.returned["export"]["trained_format"], release.returned["export"]["strategy"]) == (
        "torchscript",
    ) * 2


@pytest.mark.parametrize("where", ["s3", "run"])
def test_a_users_inputs_are_used_for_parity_and_latency(hook: MlflowHook, tmp_path: Path, where: str) -> None:
    np.savez(tmp_path / "real.npz", signal=np.full((5, 8), 0.25, np.float32))
    release = new_release(trained_run())
    if where == "s3":
        S3Hook("minio_default").load_file(
            str(tmp_path / "real.npz"), f"{release.model_name}/real.npz", "heimdall-models"
        )
        uri = f"s3://heimdall-models/{release.model_name}/real.npz"
    else:
        hook.client.log_artifact(release.training_run_id, str(tmp_path / "real.npz"), "inputs")
        uri = f"runs:/{release.training_run_id}/inputs/real.npz"
    release.params = {"inputs_uri": uri}
    compared = release.to("parity_latency")["parity"]["comparisons"]
    assert {(c["sample"], c["batch_size"]) for c in compared} >= {("user", 5), ("example", 4)}


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("s3://heimdall-models/nothing.npz", "not_found"),
        ("file:///etc/passwd", "inputs_uri_form"),
        ("s3://heimdall-models/a.pkl", "inputs_uri_form"),
    ],
)
def test_inputs_that_cannot_be_read_are_refused(hook: MlflowHook, uri: str, code: str) -> None:
    release = new_release(trained_run())
    release.params = {"inputs_uri": uri}
    with failed(code):
        release.to("parity_latency")


def test_a_wrong_weight_is_refused_with_its_node_and_a_reproduction(
    hook: MlflowHook, release: Release, tmp_path: Path
) -> None:
    release.to("check")
    _break_a_weight(release)
    with pytest.raises(AirflowFailException, match="parity: output 'positions'"):
        release.run("parity_latency")
    report = assert_refused(hook, release, "output 'positions'")
    divergence = report["benchmark"]["parity"]["divergence"]
    assert (divergence["module"], divergence["op_type"]) == ("positions", "Gemm")
    folder = mlflow.artifacts.download_artifacts(
        f"runs:/{release.training_run_id}/onnx_release/{release.model_name}/reproduction", dst_path=str(tmp_path)
    )
    done = subprocess.run([sys.executable, "reproduce.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "positions" in done.stdout


def _break_a_weight(release: Release) -> None:
    """Change one initializer of the staged file, and update every record to the new bytes."""
    import onnx

    from onnx_release.artifact.digests import describe_folder, folder_sha256

    path = release.artifact_folder / "model.onnx"
    model = onnx.load(str(path))
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "positions.weight")
    changed = onnx.numpy_helper.to_array(weight).copy()
    changed[0, 0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    (release.artifact_folder / "model.onnx.data").unlink(missing_ok=True)
    onnx.save(model, str(path))
    files = describe_folder(release.artifact_folder)
    artifact = release.artifact
    artifact["files"] = [file.to_dict() for file in files]
    artifact["sha256"] = release.returned["check"]["sha256"] = folder_sha256(files)
    artifact["size_bytes"] = sum(file.size_bytes for file in files)
