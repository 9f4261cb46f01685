"""Name of the registered model of a training run.

The first of these that is set: the parameter ``model_name``, the tag ``onnx_release.model_name`` of the run, the same
tag of its experiment, and ``<experiment>-<logged model>`` made valid.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow_onnx import validation
from airflow_onnx.errors import TrackingRefused
from airflow_onnx.tracking import weight_files
from onnx_release.errors import Refused, Transient
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook
    from onnx_release.records import TrainedModel

# MLflow's own default of `log_model(name=…)`. The names of files of weights differ from run to run.
FILE_NAME = "model"
_MAX_CHARACTERS = 128
_DIGEST_CHARACTERS = 8
_WAYS = (
    f"Give the parameter model_name, or set the tag {tags.MODEL_NAME} on the run or on its experiment: letters, "
    "digits, '.', '_' or '-'."
)


def given_name(*texts: str | None) -> str | None:
    """Return the first name that a person gave, or None.

    :raises ParameterRefused: if it is not a valid name.
    """
    name = next((text.strip() for text in texts if text and text.strip()), None)
    return validation.validate_model_name(name) if name else None


def derived_name(experiment: str, logged_model: str) -> str:
    """Return ``<experiment>-<logged model>`` made valid.

    Accents are removed, and other characters become one dash. A digest replaces lost letters and digits, and the end of
    a long name: different experiments never share a name because of it.

    :raises TrackingRefused: if the experiment's name has no character that may be in a name.
    """
    parts = [_valid_characters(text) for text in (experiment, logged_model)]
    if not parts[0]:
        raise TrackingRefused(
            f"The experiment {experiment!r:.200}",
            "has no letter or digit of the ASCII alphabet, so the registered model has no name",
            _WAYS,
            code="no_model_name",
        )
    name = "-".join(filter(None, parts))
    if len(name) <= _MAX_CHARACTERS and not any(map(_loses_letters, (experiment, logged_model))):
        return name
    digest = hashlib.sha256(f"{experiment}\0{logged_model}".encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{name[: _MAX_CHARACTERS - _DIGEST_CHARACTERS - 1].rstrip('.-_')}-{digest}"


def find_name(hook: MlflowHook, trained_model: TrainedModel, parameter: str | None) -> str:
    """Return the name of the registered model of a trained model.

    :param parameter: the parameter ``model_name`` of the release, or None.
    :raises TrackingRefused: if no name is given and none can be derived.
    """
    run, experiment = _run_and_experiment(hook, trained_model.training_run_id)
    given = given_name(parameter, run.data.tags.get(tags.MODEL_NAME), experiment.tags.get(tags.MODEL_NAME))
    return given or derived_name(experiment.name, _logged_name(hook, trained_model))


def given_name_or_none(hook: MlflowHook, training_run_id: str, parameter: str | None) -> str | None:
    """Return the given name of a run whose release is refused, or None if there is none, or MLflow does not answer."""
    try:
        run, experiment = _run_and_experiment(hook, training_run_id)
        return given_name(parameter, run.data.tags.get(tags.MODEL_NAME), experiment.tags.get(tags.MODEL_NAME))
    except (Refused, Transient):
        return None


def _run_and_experiment(hook: MlflowHook, training_run_id: str) -> tuple[Any, Any]:
    with hook.mlflow_errors(f"The training run {training_run_id}"):
        run = hook.client.get_run(training_run_id)
        return run, hook.client.get_experiment(run.info.experiment_id)


def _logged_name(hook: MlflowHook, trained_model: TrainedModel) -> str:
    """Return the name under which the training script logged the model."""
    if trained_model.logged_model_name:
        return trained_model.logged_model_name
    uri = trained_model.model_uri
    if weight_files.is_file(uri):
        return FILE_NAME
    if trained_model.model_id:
        with hook.mlflow_errors(f"The model {uri}"):
            return str(hook.client.get_logged_model(trained_model.model_id).name or FILE_NAME)
    # runs:/<run id>/<path> or models:/<name>/<version>
    path = PurePosixPath(uri.partition(":/")[2])
    return str(path.relative_to(path.parts[0])) if uri.startswith("runs:/") else path.parts[0]


def _valid_characters(text: str) -> str:
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_text).strip("-._")


def _loses_letters(text: str) -> bool:
    """Return True if the text has a letter or digit that no ASCII character replaces."""
    decomposed = unicodedata.normalize("NFKD", text)
    return any(character.isalnum() and not character.isascii() for character in decomposed)
