"""Name of the registered model of a training run.

The first of these that is set: the parameter ``model_name``, the tag ``onnx_release.model_name`` of the run, the same
tag of its experiment, and ``<experiment>-<logged model>`` made valid.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from onnx_release.errors import Refused, Transient
from onnx_release.training_runs import tags, weight_files
from onnx_release.training_runs.names import FILE_NAME, derived_name, given_name

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook
    from onnx_release.records import TrainedModel


def find_name(hook: MlflowHook, trained_model: TrainedModel, parameter: str | None) -> str:
    """Return the name of the registered model of a trained model.

    :param parameter: the parameter ``model_name`` of the release, or None.
    :raises TrainingRunRefused: if no name is given and none can be derived.
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
