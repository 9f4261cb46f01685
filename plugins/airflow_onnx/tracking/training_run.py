"""The trained model of a training run in MLflow, found by the run's id or by a model URI."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx import validation
from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow_rest import UNFINISHED
from airflow_onnx.tracking import weight_files
from onnx_release.records import TrainedModel

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook

_LOG_AGAIN = (
    "Log the model with mlflow.pytorch.log_model in the training run, or its weights as a file "
    "(.pt2, .safetensors, .ckpt, .pth, .pt), or give the URI of another run's model."
)


def resolve(hook: MlflowHook, training_run_id: str | None, model_uri: str | None) -> tuple[str, str | None]:
    """Return the id of the training run and the URI of the model to release, None for the run's own choice.

    An alias is replaced by its version: it may move while the release goes on.

    :param training_run_id: the run's id. Exactly one of the two arguments is given.
    :param model_uri: ``runs:/<run id>/<path>`` or ``models:/…``.
    :raises TrackingRefused: if the arguments name no training run.
    """
    if training_run_id and not model_uri:
        return validation.validate_run_id(training_run_id), None
    if training_run_id or not model_uri:
        given = "are both given" if training_run_id else "are both empty"
        raise TrackingRefused(
            "The parameters training_run_id and model_uri", given, "Give exactly one of them.", code="run_or_model"
        )
    if found := re.fullmatch(r"runs:/([^/]+)/(.+)", model_uri):
        return validation.validate_run_id(found[1]), model_uri
    with hook.mlflow_errors(f"The model {model_uri}", "Check the URI on MLflow's Models page."):
        run_id, pinned_uri = _registered_model(hook, model_uri)
    if not run_id:
        raise TrackingRefused(
            f"The model {model_uri}",
            "belongs to no training run",
            "Log it from a run: the release is recorded there.",
            code="model_without_run",
        )
    return run_id, pinned_uri


def _registered_model(hook: MlflowHook, uri: str) -> tuple[str | None, str]:
    if found := re.fullmatch(r"models:/(m-[0-9a-zA-Z]+)", uri):
        return hook.client.get_logged_model(found[1]).source_run_id, uri
    if found := re.fullmatch(r"models:/([^/@]+)@([^/@]+)", uri):
        version = hook.client.get_model_version_by_alias(found[1], found[2])
        return version.run_id, f"models:/{found[1]}/{version.version}"
    if found := re.fullmatch(r"models:/([^/@]+)/(\d+)", uri):
        return hook.client.get_model_version(found[1], found[2]).run_id, uri
    raise TrackingRefused(
        f"The model URI {uri!r:.200}",
        "has no known form",
        "Use runs:/<run id>/<path>, models:/m-<id>, models:/<name>/<version> or models:/<name>@<alias>.",
        code="model_uri_form",
    )


def find_trained_model(hook: MlflowHook, training_run_id: str, model_uri: str | None = None) -> TrainedModel | None:
    """Return the trained model of a finished run, or None while the run is unfinished.

    :param model_uri: the model to release, None to choose one of the run.
    :raises TrackingRefused: if the run failed, was killed or deleted, does not exist, or has no PyTorch model.
    """
    subject = f"The training run {training_run_id}"
    with hook.mlflow_errors(subject, "Check the run id and the MLflow connection."):
        run = hook.client.get_run(training_run_id)
    if run.info.lifecycle_stage == "deleted":
        raise TrackingRefused(
            subject, "was deleted", "Restore it in MLflow, or release another run.", code="run_deleted"
        )
    if run.info.status in UNFINISHED:
        return None
    if run.info.status != "FINISHED":
        raise TrackingRefused(
            subject,
            f"ended as {run.info.status}",
            "Only a FINISHED run is released: repeat the training.",
            code="run_not_finished",
        )
    if model_uri is None:
        model_uri, chosen = _choose_model(hook, run)
    else:
        chosen = "given as model_uri"
        if not weight_files.is_file(model_uri) and "pytorch" not in _flavors(hook, model_uri):
            raise TrackingRefused(
                f"The model {model_uri}", "has no pytorch flavor", _LOG_AGAIN, code="no_pytorch_flavor"
            )
    return TrainedModel(
        training_run_id=training_run_id,
        model_uri=model_uri,
        model_id=model_uri.removeprefix("models:/") if model_uri.startswith("models:/m-") else None,
        run_name=run.info.run_name or None,
        experiment_id=run.info.experiment_id,
        ended_at_ms=run.info.end_time,
        chosen=chosen,
    )


def _flavors(hook: MlflowHook, uri: str) -> dict[str, Any]:
    from mlflow.models import Model

    root = uri
    if uri.startswith("models:/m-"):
        # MLflow cannot download a single file of this form of URI.
        with hook.mlflow_errors(f"The model {uri}"):
            root = str(hook.client.get_logged_model(uri.removeprefix("models:/")).artifact_location)
    # get_model_info would leave its download in the worker's temporary folder.
    with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
        path = hook.download(f"{root}/MLmodel", Path(scratch, "model"))
        flavors: dict[str, Any] = Model.load(str(path)).flavors
    return flavors


def _choose_model(hook: MlflowHook, run: Any) -> tuple[str, str]:
    """Return the URI of the model to release, and the reason for this choice.

    The order is: the newest logged model of MLflow 3, a model folder among the run's artifacts, a file of weights.
    """
    run_id = run.info.run_id
    logged = run.outputs.model_outputs if run.outputs else []
    # A run may log a model for each checkpoint. The last step is the trained model.
    uris = [f"models:/{output.model_id}" for output in sorted(logged, key=lambda output: output.step, reverse=True)]
    chosen = f"the newest of {len(uris)} logged models with PyTorch" if uris else "a model among the run's artifacts"
    for uri in uris or _artifact_models(hook, run_id):
        if "pytorch" in _flavors(hook, uri):
            return uri, chosen
    if found := weight_files.find(hook, run_id):
        return found
    raise TrackingRefused(f"The training run {run_id}", "has no PyTorch model", _LOG_AGAIN, code="no_pytorch_model")


def _artifact_models(hook: MlflowHook, run_id: str) -> list[str]:
    with hook.mlflow_errors(f"The artifact folder of run {run_id}"):
        folders = [item.path for item in hook.client.list_artifacts(run_id) if item.is_dir]
        return [
            f"runs:/{run_id}/{folder}"
            for folder in folders
            if any(item.path == f"{folder}/MLmodel" for item in hook.client.list_artifacts(run_id, folder))
        ]
