"""Access to MLflow by its own client. The environment names the server, as for every program of MLflow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnx_release.errors import CommandRefused, Transient, shorten

URIS = ("runs:/", "models:/")
_OUTAGES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


@contextmanager
def mlflow_errors(subject: str) -> Iterator[None]:
    """Turn the errors of MLflow's client into those of a command.

    Raises:
        CommandRefused: ``no_tracking_uri`` without a server, ``model_not_found`` for its refusals.
        Transient: The server does not answer.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        # MLflow's default is a new database in the working folder.
        raise CommandRefused(
            "The environment variable MLFLOW_TRACKING_URI",
            "is not set",
            "Set it to the address of the MLflow server, such as http://127.0.0.1:5000.",
            code="no_tracking_uri",
        )
    from mlflow.exceptions import MlflowException

    action = "Check the name, the environment variable MLFLOW_TRACKING_URI and its account."
    try:
        yield
    except MlflowException as error:
        problem = f"cannot be read from MLflow: {shorten(error)}"
        if error.error_code in _OUTAGES:
            raise Transient(subject, problem, action) from error
        raise CommandRefused(subject, problem, action, code="model_not_found") from error
    except OSError as error:  # also the errors of the library `requests`
        raise Transient(subject, f"cannot be read: {shorten(error)}", action) from error


def download(uri: str, folder: Path) -> Path:
    """Download a model and return its path in the folder, which is made."""
    folder.mkdir()
    with mlflow_errors(f"The model {uri:.200}"):
        from mlflow.artifacts import download_artifacts

        return Path(download_artifacts(artifact_uri=uri, dst_path=str(folder)))


def training_run_tags_and_params(model: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return tags and params of the training run of a URI. Both are empty for a path or a registered version."""
    if not model.startswith(URIS):
        return {}, {}
    with mlflow_errors(f"The model {model:.200}"):
        from mlflow import MlflowClient

        client, run_id = MlflowClient(), None
        if found := re.match(r"runs:/([^/]+)/", model):
            run_id = found[1]
        elif found := re.fullmatch(r"models:/(m-[0-9a-zA-Z]+)", model):
            run_id = client.get_logged_model(found[1]).source_run_id
        data = client.get_run(run_id).data if run_id else None
    return (dict(data.tags), dict(data.params)) if data else ({}, {})
