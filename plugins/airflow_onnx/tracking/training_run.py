"""From what a person or an event names (a run id, a model URI) to the one trained model that is meant."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx import validation
from airflow_onnx.hooks import mlflow_rest
from airflow_onnx.tracking import weight_files
from onnx_release.errors import Refused
from onnx_release.records import TrainedModel

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook

_RELOG = (
    "Log the model with mlflow.pytorch.log_model in the training run, or its weights as a file "
    "(.pt2, .safetensors, .ckpt, .pth, .pt), or give the URI of another run's model."
)


@dataclass(frozen=True, slots=True)
class Target:
    """A training run, and the one model of it that was asked for (empty: the run's own). An alias is pinned."""

    training_run_id: str
    model_uri: str = ""


def target(hook: MlflowHook, run_id: str, model_uri: str) -> Target:
    """Return what a release is about.

    :param run_id: given directly, or empty.
    :param model_uri: ``runs:/<run id>/<path>`` or ``models:/…``, or empty; exactly one of the two is needed.
    """
    if bool(run_id) == bool(model_uri):
        given = "both are given" if run_id else "neither is given"
        raise Refused("training_run_id and model_uri", given, "Give exactly one of them.")
    if run_id:
        return Target(validation.run_id(run_id))
    if found := re.fullmatch(r"runs:/([^/]+)/(.+)", model_uri):
        return Target(validation.run_id(found[1]), model_uri)
    with hook.mlflow_errors(f"model {model_uri}", "Check the URI against MLflow's Models page."):
        found_run, pinned = _registered(hook, model_uri)
    if not found_run:
        raise Refused(
            f"model {model_uri}", "belongs to no training run", "Log it from a run: the release is filed there."
        )
    return Target(found_run, pinned)


def _registered(hook: MlflowHook, uri: str) -> tuple[str | None, str]:
    """Return the run of a logged model or model version, and a URI that keeps its meaning when an alias moves."""
    if found := re.fullmatch(r"models:/(m-[0-9a-zA-Z]+)", uri):
        return hook.client.get_logged_model(found[1]).source_run_id, uri
    if found := re.fullmatch(r"models:/([^/@]+)@([^/@]+)", uri):
        version = hook.client.get_model_version_by_alias(found[1], found[2])
        return version.run_id, f"models:/{found[1]}/{version.version}"
    if found := re.fullmatch(r"models:/([^/@]+)/(\d+)", uri):
        return hook.client.get_model_version(found[1], found[2]).run_id, uri
    raise Refused(
        f"model URI {uri!r:.200}",
        "is of no known form",
        "Use runs:/<run id>/<path>, models:/m-<id>, models:/<name>/<version> or models:/<name>@<alias>.",
    )


def find_trained_model(hook: MlflowHook, wanted: Target) -> TrainedModel | None:
    """Return the model of a finished run, or None while the run is unfinished.

    Raises `Refused` when the run failed, was killed or deleted, does not exist, or holds no PyTorch model.
    """
    run_id = wanted.training_run_id
    with hook.mlflow_errors(f"training run {run_id}", "Check the run id and the MLflow connection."):
        run = hook.client.get_run(run_id)
    if run.info.lifecycle_stage == "deleted":
        raise Refused(f"training run {run_id}", "was deleted", "Restore it in MLflow, or release another run.")
    if run.info.status in mlflow_rest.UNFINISHED:
        return None
    if run.info.status != "FINISHED":
        raise Refused(
            f"training run {run_id}", f"ended as {run.info.status}", "Only a FINISHED run is released: train again."
        )
    if wanted.model_uri:
        uri, chosen = wanted.model_uri, "it was asked for"
        if not weight_files.is_file(uri):
            _require_pytorch(hook, uri)
    else:
        uri, chosen = _model_of(hook, run)
    return TrainedModel(
        training_run_id=run_id,
        model_uri=uri,
        model_id=uri.removeprefix("models:/") if uri.startswith("models:/m-") else None,
        run_name=run.info.run_name or "",
        experiment_id=run.info.experiment_id,
        ended_at_ms=run.info.end_time,
        chosen=chosen,
    )


def _require_pytorch(hook: MlflowHook, uri: str) -> None:
    if "pytorch" not in _flavors(hook, uri):
        raise Refused(f"model {uri}", "has no pytorch flavor", _RELOG)


def _flavors(hook: MlflowHook, uri: str) -> dict[str, Any]:
    from mlflow.models import Model

    # Not get_model_info: it leaves its download behind in the worker's temporary folder.
    with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
        path = hook.download(f"{_root(hook, uri)}/MLmodel", Path(scratch, "model"))
        flavors: dict[str, Any] = Model.load(str(path)).flavors
    return flavors


def _root(hook: MlflowHook, uri: str) -> str:
    """Return an address below which single files can be fetched; MLflow cannot for ``models:/m-…`` itself."""
    if not uri.startswith("models:/m-"):
        return uri
    with hook.mlflow_errors(f"model {uri}"):
        return str(hook.client.get_logged_model(uri.removeprefix("models:/")).artifact_location)


def _model_of(hook: MlflowHook, run: Any) -> tuple[str, str]:
    """Return the URI of what a run is released from, and why: a model comes before weights alone.

    The newest of an MLflow 3 run's logged models, else a model folder among the run's artifacts, else a file.
    """
    run_id = run.info.run_id
    logged = run.outputs.model_outputs if run.outputs else []
    # A run may log a model per checkpoint; the last step is the trained one.
    uris = [f"models:/{output.model_id}" for output in sorted(logged, key=lambda output: output.step, reverse=True)]
    where = f"of {len(uris)} logged models the newest with PyTorch" if uris else "a model among the run's artifacts"
    for uri in uris or _artifact_models(hook, run_id):
        if "pytorch" in _flavors(hook, uri):
            return uri, where
    if found := weight_files.find(hook, run_id):
        return found
    raise Refused(f"training run {run_id}", "holds no PyTorch model", _RELOG)


def _artifact_models(hook: MlflowHook, run_id: str) -> list[str]:
    with hook.mlflow_errors(f"artifacts of run {run_id}"):
        folders = [item.path for item in hook.client.list_artifacts(run_id) if item.is_dir]
        return [
            f"runs:/{run_id}/{folder}"
            for folder in folders
            if any(item.path == f"{folder}/MLmodel" for item in hook.client.list_artifacts(run_id, folder))
        ]
