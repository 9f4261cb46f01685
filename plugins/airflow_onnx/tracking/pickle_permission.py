"""Permission of the deployment to load a pickle: for all experiments of MLflow, or for those that it names."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from airflow_onnx.deployment import settings

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook


def allowed_in(experiment_id: str, name: str) -> bool:
    """Return True if pickles of an experiment may be loaded."""
    if settings.allow_pickle():
        return True
    patterns = settings.pickle_experiments()
    return experiment_id in patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def is_allowed(hook: MlflowHook, model_uri: str) -> bool:
    """Return True if a model may be loaded although it is a pickle.

    The place of its files decides. A registered version names any run and any place, so its run decides nothing.
    """
    if settings.allow_pickle():
        return True
    if not settings.pickle_experiments():
        return False
    location = hook.location(model_uri)
    found = re.match(r"mlflow-artifacts:/{1,3}(?:[^/]+/)??([0-9]+)/", location)
    if found is None or ".." in location or "%" in location:
        return False
    with hook.mlflow_errors(f"The experiment {found[1]}"):
        experiment = hook.client.get_experiment(found[1])
    inside = location.startswith(f"{experiment.artifact_location.rstrip('/')}/")
    return inside and allowed_in(experiment.experiment_id, experiment.name)
