"""Access to MLflow by its own client. The environment names the server, as for every program of MLflow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from onnx_release.errors import CommandRefused, Transient
from onnx_release.machine_faults import machine_failure
from onnx_release.text import shorten

URIS = ("runs:/", "models:/")
_OUTAGES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
# Libraries below MLflow's client whose errors it passes on.
_STORES = ("botocore", "boto3", "urllib3", "requests")
_ACTION = "Check the name, the environment variable MLFLOW_TRACKING_URI and its account."


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """Version of a registered model. Its texts are not trusted."""

    name: str
    version: int
    tags: dict[str, str]


@contextmanager
def mlflow_errors(subject: str) -> Iterator[None]:
    """Turn the errors of MLflow's client, and of the stores below it, into those of a command.

    Raises:
        CommandRefused: ``model_not_found`` or ``no_access``.
        Transient: A server does not answer.
    """
    try:
        yield
    except (CommandRefused, Transient):
        raise
    except Exception as error:
        # The client passes on errors of the libraries below it, which have no common class.
        if (failure := machine_failure(error)) is not None:
            raise failure from error
        library, status = type(error).__module__.partition(".")[0], _status(error)
        problem = f"cannot be read: {shorten(error)}"
        if library == "mlflow":
            code = str(getattr(error, "error_code", ""))
            if code in _OUTAGES and status not in ("401", "403", "404"):
                raise Transient(subject, problem, _ACTION) from error
            is_denied = code in ("PERMISSION_DENIED", "UNAUTHENTICATED") or status in ("401", "403")
            raise _refused(subject, problem, is_denied=is_denied) from error
        if library in _STORES and (status or "Credentials" in type(error).__name__):
            is_denied = status in ("", "401", "403")
            if is_denied or status in ("404", "400"):
                raise _refused(subject, problem, is_denied=is_denied) from error
        if library in _STORES or isinstance(error, OSError):
            raise Transient(subject, problem, _ACTION) from error
        raise


def _status(error: Exception) -> str:
    """Return the HTTP status of an error, empty for one without."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    if response is not None:
        return str(getattr(response, "status_code", ""))
    found = re.search(r"error code (\d{3})|\b(40[134]) (?:Client )?Error", str(error))
    return (found[1] or found[2]) if found else ""


def _refused(subject: str, problem: str, *, is_denied: bool) -> CommandRefused:
    if is_denied:
        action = "Set the account in the environment: MLFLOW_TRACKING_USERNAME, or AWS_ACCESS_KEY_ID for a store."
        return CommandRefused(subject, problem, action, code="no_access")
    return CommandRefused(subject, problem, _ACTION, code="model_not_found")


def require_server() -> None:
    """Refuse a command that needs MLflow in an environment that names none.

    Raises:
        CommandRefused: ``no_tracking_uri``. MLflow's default is a new database in the working folder.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise CommandRefused(
            "The environment variable MLFLOW_TRACKING_URI",
            "is not set",
            "Set it to the address of the MLflow server, such as http://127.0.0.1:5000.",
            code="no_tracking_uri",
        )


def find_version(uri: str) -> Version | None:
    """Return the registered version of ``models:/name/3`` or ``models:/name@alias``, None for another form.

    Raises:
        CommandRefused: It does not exist.
        Transient: MLflow does not answer.
    """
    found = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))", uri)
    if not found:
        return None
    require_server()
    with mlflow_errors(f"The version {uri:.200}"):
        from mlflow import MlflowClient

        client, name = MlflowClient(), found[1]
        row = (
            client.get_model_version(name, found[2]) if found[2] else client.get_model_version_by_alias(name, found[3])
        )
        return Version(name=row.name, version=int(row.version), tags=dict(row.tags))


def download(uri: str, folder: Path, sources: Sequence[str] = ()) -> Path:
    """Download a model, and return its path in the folder, which is made.

    Args:
        uri: A URI of MLflow, or of an S3 store.
        folder: A new folder.
        sources: The beginnings of URIs that the user trusts with the credentials of the environment.

    Raises:
        CommandRefused: The model does not exist, or is at a foreign place.
        Transient: A server does not answer.
    """
    folder.mkdir()
    with mlflow_errors(f"The model {uri:.200}"):
        from mlflow.artifacts import download_artifacts

        # MLflow's client adds a file to the download of a version by its name, so the source is read.
        place = _source(uri)
        _require_trusted(uri, _places(place), sources)
        return Path(download_artifacts(artifact_uri=place, dst_path=str(folder)))


def _source(uri: str) -> str:
    """Return the source of a registered version, or another URI unchanged."""
    if (version := find_version(uri)) is None:
        return uri
    from mlflow import MlflowClient

    return str(MlflowClient().get_model_version_download_uri(version.name, str(version.version)))


def _places(uri: str) -> list[str]:
    """Return the addresses from which MLflow's client may read the files of a model."""
    if not uri.startswith(URIS):
        return [uri]
    require_server()
    from mlflow import MlflowClient

    client = MlflowClient()
    if found := re.match(r"runs:/([^/]+)/.", uri):
        run = client.get_run(found[1])
        # The path may also be the name of a model that the run logged, which has its own folder.
        logged = [client.get_logged_model(one.model_id) for one in run.outputs.model_outputs] if run.outputs else []
        return [str(run.info.artifact_uri), *(str(model.artifact_location) for model in logged)]
    if found := re.fullmatch(r"models:/(m-[0-9a-zA-Z]+)", uri):
        return [str(client.get_logged_model(found[1]).artifact_location)]
    raise CommandRefused(f"The model {uri!r:.200}", "has no known form", _ACTION, code="model_not_found")


def _require_trusted(uri: str, places: Sequence[str], sources: Sequence[str]) -> None:
    """Refuse a place that a registry or a run names, and that would receive the credentials of the environment."""
    for place in places:
        parts = urlsplit(place)
        is_served = parts.scheme in ("mlflow-artifacts", "file", "") and not parts.netloc
        if not (is_served or place == uri or any(_is_below(place, source) for source in sources)):
            raise CommandRefused(
                f"The model {uri:.200}",
                f"has its files at {place!r:.300}",
                "To read them with the credentials of this environment, name the place: "
                f"--source {parts.scheme}://{parts.netloc}/.",
                code="foreign_source",
            )


def _is_below(place: str, source: str) -> bool:
    inside = source.rstrip("/") + "/"
    return "://" in source and ".." not in place and (place.rstrip("/") + "/").startswith(inside)


def training_run_tags_and_params(model: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return tags and params of the training run of a URI. Both are empty for a path or a registered version."""
    if not model.startswith(URIS):
        return {}, {}
    require_server()
    with mlflow_errors(f"The model {model:.200}"):
        from mlflow import MlflowClient

        client, run_id = MlflowClient(), None
        if found := re.match(r"runs:/([^/]+)/", model):
            run_id = found[1]
        elif found := re.fullmatch(r"models:/(m-[0-9a-zA-Z]+)", model):
            run_id = client.get_logged_model(found[1]).source_run_id
        data = client.get_run(run_id).data if run_id else None
    return (dict(data.tags), dict(data.params)) if data else ({}, {})
