"""The trained model of training runs of every kind, on a real MLflow server."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from mlflow.entities import LoggedModelOutput
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from safetensors.torch import save_file

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import s3, worker_cache
from airflow_onnx.tracking import training_run
from onnx_release.errors import Refused, Transient
from onnx_release.trained.input_spec import parse_input_spec
from onnx_release.trained.load import load_trained
from onnx_release.trained.mlflow_model import read_trained
from onnx_release.trained.model_factory import FactoryOptions
from tests.refusals import refused

SIGNATURE = ModelSignature(
    Schema([TensorSpec(np.dtype("float32"), (-1, 3), "x")]), Schema([TensorSpec(np.dtype("float32"), (-1, 2), "y")])
)


def log_model(name: str = "model", step: int = 0) -> str:
    """Log a small PyTorch model to the active run and return its id."""
    info = mlflow.pytorch.log_model(
        torch.nn.Linear(3, 2).eval(),
        name=name,
        signature=SIGNATURE,
        input_example=np.ones((2, 3), np.float32),
        pip_requirements=["torch"],
        step=step,
    )
    assert info.model_id
    return str(info.model_id)


def log_folder(hook: MlflowHook, run_id: str, folder: Path, name: str = "model", step: int = 0) -> str:
    """Log the files of a model as `log_model` does, without an export, and return the model's id."""
    model_id = str(mlflow.initialize_logged_model(name=name, source_run_id=run_id).model_id)
    hook.client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    hook.client.log_model_artifacts(model_id, str(folder))
    hook.client.finalize_logged_model(model_id, "READY")
    return model_id


def test_the_model_of_a_finished_run_is_found(hook: MlflowHook) -> None:
    with mlflow.start_run(run_name="../../etc/ünï code\n") as run:
        model_id = log_model()
    found = training_run.find_trained_model(hook, run.info.run_id)
    assert found is not None
    assert (found.training_run_id, found.model_uri) == (run.info.run_id, f"models:/{model_id}")
    assert found.run_name == "../../etc/ünï code\n", "the name is data and stays unchanged"
    assert found.ended_at_ms


def test_of_several_models_the_one_of_the_last_step_is_chosen(hook: MlflowHook) -> None:
    with mlflow.start_run() as run:
        last = log_model("best", step=20)
        log_model("early", step=10)
    found = training_run.find_trained_model(hook, run.info.run_id)
    assert found is not None
    assert found.model_id == last


def test_models_that_cannot_be_released_are_skipped_with_the_reason(
    hook: MlflowHook, administrator: None, model_folder: Path, tmp_path: Path
) -> None:
    with mlflow.start_run() as run:
        good, damaged, empty, failed, deleted = (
            log_folder(hook, run.info.run_id, model_folder, step=step) for step in range(1, 6)
        )
        other = mlflow.sklearn.log_model({"no": "estimator"}, name="scaler", step=6, pip_requirements=[])
        unfinished = mlflow.initialize_logged_model(name="model", source_run_id=run.info.run_id, model_type="x")
        hook.client.log_outputs(run.info.run_id, [LoggedModelOutput(unfinished.model_id, 7)])
    hook.client.finalize_logged_model(failed, "FAILED")
    hook.client.delete_logged_model(deleted)
    (tmp_path / "MLmodel").write_text("flavors: [not yaml: {")
    hook.client.log_model_artifacts(damaged, str(tmp_path))
    _remove_data(hook, empty)
    found = training_run.find_trained_model(hook, run.info.run_id)
    assert found is not None
    assert (found.model_id, found.logged_model_name) == (good, "model")
    reasons = ("PENDING", "not a PyTorch model", "deleted", "FAILED", "files are gone", "cannot be read")
    ids = (unfinished.model_id, other.model_id, deleted, failed, empty, damaged)
    assert len(found.skipped) == len(ids)
    assert all(part in text for text, *parts in zip(found.skipped, ids, reasons, strict=True) for part in parts)


def test_models_of_one_step_with_different_names_are_refused_unless_one_is_named(
    hook: MlflowHook, model_folder: Path
) -> None:
    with mlflow.start_run() as run:
        ids = {name: log_folder(hook, run.info.run_id, model_folder, name) for name in ("encoder", "decoder")}
    with refused("several_logged_models", "'decoder', 'encoder'"):
        training_run.find_trained_model(hook, run.info.run_id)
    by_parameter = training_run.find_trained_model(hook, run.info.run_id, logged_model_name="encoder")
    hook.client.set_tag(run.info.run_id, "onnx_release.logged_model_name", "decoder")
    by_tag = training_run.find_trained_model(hook, run.info.run_id)
    assert by_parameter is not None
    assert by_tag is not None
    assert (by_parameter.model_id, by_tag.model_id) == (ids["encoder"], ids["decoder"])


def test_a_version_that_a_release_made_is_refused_as_such(hook: MlflowHook) -> None:
    with mlflow.start_run() as run:
        model_id = log_model()
    version = mlflow.register_model(f"models:/{model_id}", "released-models").version
    hook.client.set_model_version_tag("released-models", version, "onnx.sha256", "a" * 64)
    with refused("released_version", run.info.run_id):
        training_run.resolve(hook, None, f"models:/released-models/{version}")


def test_an_unfinished_run_returns_no_model(hook: MlflowHook) -> None:
    with mlflow.start_run() as run:
        assert training_run.find_trained_model(hook, run.info.run_id) is None


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_run_that_did_not_finish_is_refused(hook: MlflowHook, status: str) -> None:
    run = mlflow.start_run()
    mlflow.end_run(status)
    with refused("run_not_finished", status):
        training_run.find_trained_model(hook, run.info.run_id)


def test_a_deleted_run_is_refused(hook: MlflowHook) -> None:
    with mlflow.start_run() as run:
        log_model()
    hook.client.delete_run(run.info.run_id)
    with refused("run_deleted"):
        training_run.find_trained_model(hook, run.info.run_id)


def test_a_run_without_a_model_is_refused(hook: MlflowHook) -> None:
    with mlflow.start_run() as run:
        mlflow.log_text("no model", "notes.txt")
    with refused("no_pytorch_model", "log_model"):
        training_run.find_trained_model(hook, run.info.run_id)


def test_an_unknown_run_is_refused(hook: MlflowHook) -> None:
    with refused("not_found", "0" * 32):
        training_run.find_trained_model(hook, "0" * 32)


def test_a_model_of_mlflow_2_is_found_among_the_artifacts(hook: MlflowHook, tmp_path: Path) -> None:
    mlflow.pytorch.save_model(
        torch.nn.Linear(3, 2), tmp_path / "m", serialization_format="pickle", pip_requirements=["torch"]
    )
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(tmp_path / "m"), "old_model")
        mlflow.log_text("x", "notes/other.txt")
    found = training_run.find_trained_model(hook, run.info.run_id)
    assert found is not None
    assert (found.model_uri, found.model_id) == (f"runs:/{run.info.run_id}/old_model", None)


def test_a_model_of_another_flavor_is_refused(hook: MlflowHook, tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({}))
    (tmp_path / "MLmodel").write_text(json.dumps({"flavors": {"sklearn": {"pickled_model": "model.pkl"}}}))
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(tmp_path), "model")
    with refused("no_pytorch_flavor"):
        training_run.find_trained_model(hook, run.info.run_id, f"runs:/{run.info.run_id}/model")


def test_every_form_of_model_uri_resolves_to_its_run(hook: MlflowHook) -> None:
    with mlflow.start_run() as run:
        model_id = log_model()
    run_id = run.info.run_id
    version = mlflow.register_model(f"models:/{model_id}", "torch-models").version
    hook.client.set_registered_model_alias("torch-models", "best", version)
    uris = (f"runs:/{run_id}/model", f"models:/{model_id}", f"models:/torch-models/{version}")
    assert [training_run.resolve(hook, None, uri) for uri in uris] == [(run_id, uri) for uri in uris]
    by_alias = training_run.resolve(hook, None, "models:/torch-models@best")
    assert by_alias == (run_id, uris[2]), "the version, as the alias may move while the release goes on"
    found = training_run.find_trained_model(hook, *by_alias)
    assert found is not None
    assert found.model_uri == uris[2]


@pytest.mark.parametrize(
    ("run_id", "uri", "code"),
    [
        (None, None, "run_or_model"),
        ("abc", "models:/m@a", "run_or_model"),
        (None, "s3://bucket/x", "model_uri_form"),
        (None, "models:/no-such-model/1", "not_found"),
        (None, "models:/m-0123456789abcdef0123456789abcdef", "not_found"),
    ],
)
def test_arguments_that_name_no_run_are_refused(
    hook: MlflowHook, run_id: str | None, uri: str | None, code: str
) -> None:
    with refused(code):
        training_run.resolve(hook, run_id, uri)


@pytest.mark.parametrize(("run_id", "uri"), [("../../x", None), (None, "runs:/../x")])
def test_an_invalid_run_id_is_refused(hook: MlflowHook, run_id: str | None, uri: str | None) -> None:
    with pytest.raises(Refused):
        training_run.resolve(hook, run_id, uri)


def test_a_model_is_downloaded_whole_and_a_missing_one_leaves_no_folder(hook: MlflowHook, tmp_path: Path) -> None:
    with mlflow.start_run():
        model_id = log_model()
    assert (hook.download(f"models:/{model_id}", tmp_path / "there") / "data/model.pt2").stat().st_size > 0
    with pytest.raises((Refused, Transient), match="m-00"):
        hook.download("models:/m-00000000000000000000000000000000", tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_weights_in_shards_are_downloaded_with_their_index_and_loaded(hook: MlflowHook, tmp_path: Path) -> None:
    trained = torch.nn.Linear(3, 2).eval()
    weight_map = {}
    for number, (name, tensor) in enumerate(trained.state_dict().items(), 1):
        weight_map[name] = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensor}, tmp_path / weight_map[name])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(tmp_path), "checkpoint-12")
        mlflow.log_text("x", "checkpoint-12/optimizer.pt")
    found = training_run.find_trained_model(hook, run.info.run_id)
    assert found is not None
    assert found.model_uri == f"runs:/{run.info.run_id}/checkpoint-12/model.safetensors.index.json"
    spec = parse_input_spec([{"name": "x", "dtype": "float32", "shape": ["batch", 3]}])
    factory = FactoryOptions(path="torch.nn:Linear", allowed=("torch",), kwargs={"in_features": 3, "out_features": 2})
    with worker_cache.trained_model(hook, found.model_uri) as fetched:
        loaded = load_trained(read_trained(fetched.path, spec), allow_pickle=False, factory=factory)
    batch = torch.randn(5, 3)
    assert isinstance(loaded, torch.nn.Module)
    assert torch.equal(loaded(batch), trained(batch))


def _remove_data(hook: MlflowHook, model_id: str) -> None:
    """Delete the data folder of a logged model in the store, as a wrong lifecycle rule does."""
    uri = hook.client.get_logged_model(model_id).artifact_location
    prefix = uri.removeprefix("mlflow-artifacts:/") + "/data/"
    folder = s3.S3Folder(hook=S3Hook("minio_default"), bucket="mlflow", prefix=prefix)
    paths = sorted(s3.sizes(folder))
    assert paths
    s3.remove(folder, paths)
