"""The trained model of a training run in MLflow, found by the run's id or by a model URI."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from onnx_release.errors import TrainedModelRefused
from onnx_release.records import TrainedModel
from onnx_release.scratch import scratch_folder
from onnx_release.text import shorten
from onnx_release.training_runs import tags, trained_models, weight_files
from onnx_release.training_runs.names import validate_run_id
from onnx_release.training_runs.records import TrainingRun
from onnx_release.training_runs.trained_models import FoundModel

if TYPE_CHECKING:
    from mlflow.models import Model

    from airflow_onnx.hooks.mlflow import MlflowHook

log = logging.getLogger(__name__)

_NO_PYTORCH_FLAVOR = "has no pytorch flavor"


def resolve(hook: MlflowHook, training_run_id: str | None, model_uri: str | None) -> tuple[str, str | None]:
    """Return the id of the training run and the URI of the model to release, None for the run's own choice.

    An alias is replaced by its version: it may move while the release goes on.

    :param training_run_id: the run's id. Exactly one of the two arguments is given.
    :param model_uri: ``runs:/<run id>/<path>`` or ``models:/…``.
    :raises TrackingRefused: if the arguments name no training run.
    """
    if training_run_id and not model_uri:
        return validate_run_id(training_run_id), None
    if training_run_id or not model_uri:
        given = "are both given" if training_run_id else "are both empty"
        raise TrackingRefused(
            "The parameters training_run_id and model_uri", given, "Give exactly one of them.", code="run_or_model"
        )
    if found := re.fullmatch(r"runs:/([^/]+)/(.+)", model_uri):
        return validate_run_id(found[1]), model_uri
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
    version: Any = None
    if found := re.fullmatch(r"models:/([^/@]+)@([^/@]+)", uri):
        version = hook.client.get_model_version_by_alias(found[1], found[2])
    elif found := re.fullmatch(r"models:/([^/@]+)/(\d+)", uri):
        version = hook.client.get_model_version(found[1], found[2])
    if found and tags.VERSION_SHA256 in version.tags:
        raise TrackingRefused(
            f"The model {uri}",
            f"is an ONNX version that a release made from the training run {version.run_id}",
            "Give the id of that run, or the PyTorch model that it logged.",
            code="released_version",
        )
    if found:
        return version.run_id, f"models:/{found[1]}/{version.version}"
    raise TrackingRefused(
        f"The model URI {uri!r:.200}",
        "has no known form",
        "Use runs:/<run id>/<path>, models:/m-<id>, models:/<name>/<version> or models:/<name>@<alias>.",
        code="model_uri_form",
    )


def find_trained_model(
    hook: MlflowHook, training_run_id: str, model_uri: str | None = None, logged_model_name: str | None = None
) -> TrainedModel | None:
    """Return the trained model of a finished run, or None while the run is unfinished.

    :param model_uri: the model to release, None to choose one of the run.
    :param logged_model_name: the name of the run's logged model to release. Without it, the run's tag decides.
    :raises TrackingRefused: if the run failed, was killed or deleted, does not exist, or has no PyTorch model, or if
        MLflow does not serve the model's files.
    """
    with MlflowRest(hook.server) as rest:
        run = _training_run(rest, training_run_id)
        if run.unfinished:
            return None
        if model_uri is None:
            found = trained_models.find(rest, run, logged_model_name, lambda uri: _problem(hook, uri))
            for skipped in found.skipped:
                log.warning("Skipped: %s", skipped)
            log.info("The model %s: %s.", found.uri, found.chosen)
        else:
            found = _given_model(hook, model_uri)
    uri = found.uri
    # A weights file was not downloaded yet.
    with hook.mlflow_errors(f"The model {uri}"):
        hook.require_served(uri)
    return TrainedModel(
        training_run_id=training_run_id,
        model_uri=uri,
        model_id=uri.removeprefix("models:/") if uri.startswith("models:/m-") else None,
        run_name=run.name or None,
        experiment_id=run.experiment_id,
        ended_at_ms=run.ended_at_ms or None,
        logged_model_name=found.name or None,
        chosen=found.chosen,
        skipped=found.skipped,
    )


def _training_run(rest: MlflowRest, training_run_id: str) -> TrainingRun:
    """Return a run that has finished or may still finish."""
    subject = f"The training run {training_run_id}"
    run = rest.run(training_run_id)
    if run.deleted:
        raise TrackingRefused(
            subject, "was deleted", "Restore it in MLflow, or release another run.", code="run_deleted"
        )
    if not run.unfinished and run.status != "FINISHED":
        raise TrackingRefused(
            subject,
            f"ended as {run.status}",
            "Only a FINISHED run is released: repeat the training.",
            code="run_not_finished",
        )
    return run


def _given_model(hook: MlflowHook, uri: str) -> FoundModel:
    if weight_files.is_file(uri):
        weight_files.refuse_shards([uri], f"The model {uri}")
        return FoundModel(uri=uri, kind="file", chosen="given as model_uri")
    if (problem := _problem(hook, uri)) is not None:
        is_other = problem == _NO_PYTORCH_FLAVOR
        raise TrackingRefused(
            f"The model {uri}",
            problem,
            trained_models.LOG_AGAIN,
            code="no_pytorch_flavor" if is_other else "unreadable_model",
        )
    return FoundModel(uri=uri, kind="pickle", chosen="given as model_uri")


def _problem(hook: MlflowHook, uri: str) -> str | None:
    """Return the reason why a logged model cannot be released, by its file MLmodel; None if it can be."""
    try:
        flavors = dict(_mlmodel(hook, uri).flavors)
    except TrainedModelRefused as error:
        return f"has a file MLmodel that cannot be read ({shorten(error.problem, 200)})"
    return None if "pytorch" in flavors else _NO_PYTORCH_FLAVOR


def signature_names(hook: MlflowHook, uri: str) -> list[str] | None:
    """Return the names of the inputs in the signature of a logged model; None if they are not known yet."""
    from onnx_release.trained.signature import read_schema

    if weight_files.is_file(uri):
        return None
    try:
        signature = _mlmodel(hook, uri).signature
        return [spec.name for spec in read_schema(signature and signature.inputs, "input")]
    except TrainedModelRefused:
        # The export refuses it, if it needs it.
        return None


def _mlmodel(hook: MlflowHook, uri: str) -> Model:
    from onnx_release.trained.mlflow_model import read_mlmodel

    root = uri
    # Not a version of a registered model whose name begins in the same way.
    if re.fullmatch(r"models:/m-[0-9a-zA-Z]+", uri):
        # MLflow cannot download a single file of this form of URI.
        with hook.mlflow_errors(f"The model {uri}"):
            root = str(hook.client.get_logged_model(uri.removeprefix("models:/")).artifact_location)
    # get_model_info would leave its download in the worker's temporary folder.
    with scratch_folder() as scratch:
        return read_mlmodel(hook.download(f"{root}/MLmodel", scratch / "model"))
