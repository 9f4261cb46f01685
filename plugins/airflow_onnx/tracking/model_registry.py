"""MLflow's model registry: one version per (training run, sha256), whoever asks and however often."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnx_release.errors import Refused, Transient
from onnx_release.records import ModelVersion

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook

log = logging.getLogger(__name__)

SHA_TAG = "onnx.sha256"
# What a version computes in; versions without this tag are older than it, and exact.
PRECISION_TAG = "onnx.precision"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRequest:
    """What a version is made from; `name`, `training_run_id` and `sha256` identify it."""

    name: str
    training_run_id: str
    sha256: str
    source: str
    description: str
    tags: dict[str, str] = field(default_factory=dict)


def versions_of(hook: MlflowHook, name: str, training_run_id: str, sha256: str) -> list[Any]:
    """Return MLflow's versions of one artifact of one training run, oldest first; at most one in a settled registry."""
    wanted = f"name='{name}' and run_id='{training_run_id}'"
    with hook.mlflow_errors(f"versions of model '{name}'"):
        found = [v for v in hook.client.search_model_versions(wanted) if v.tags.get(SHA_TAG) == sha256]
    return sorted(found, key=lambda version: int(version.version))


def holds(hook: MlflowHook, name: str, version: str, training_run_id: str) -> bool:
    """Tell whether a version is there and was made by a release of this training run."""
    try:
        with hook.mlflow_errors(f"version {version} of model '{name}'"):
            found = hook.client.get_model_version(name, version)
    except Refused:
        # Deleted, or never there: names and numbers that were read from tags can be anything.
        return False
    return found.run_id == training_run_id and SHA_TAG in found.tags


def ensure_version(hook: MlflowHook, request: VersionRequest) -> ModelVersion:
    """Create the version, or return the one that exists.

    MLflow has no unique key. Two releases at once may both create; each then sees both, keeps the lower number and
    deletes its own, so that exactly one is left.
    """
    created = None
    if not versions_of(hook, request.name, request.training_run_id, request.sha256):
        created = _create(hook, request)
    settled = versions_of(hook, request.name, request.training_run_id, request.sha256)
    if not settled:
        raise Transient(
            f"model '{request.name}'",
            "does not list the version just created",
            "The registry may lag; it is tried again.",
        )
    kept = settled[0]
    for duplicate in settled[1:]:
        _delete_duplicate(hook, request.name, duplicate)
    return ModelVersion(
        name=request.name,
        version=int(kept.version),
        sha256=request.sha256,
        source=kept.source,
        training_run_id=request.training_run_id,
        created=created is not None and created.version == kept.version,
    )


def _create(hook: MlflowHook, request: VersionRequest) -> Any:
    _ensure_model(hook, request.name)
    subject = f"model '{request.name}' with source {request.source}"
    action = "A server that refuses the source allows it by MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX."
    with hook.mlflow_errors(subject, action):
        return hook.client.create_model_version(
            name=request.name,
            source=request.source,
            run_id=request.training_run_id,
            tags={**request.tags, SHA_TAG: request.sha256},
            description=request.description,
        )


def _ensure_model(hook: MlflowHook, name: str) -> None:
    from mlflow.exceptions import MlflowException

    with hook.mlflow_errors(f"registered model '{name}'"):
        try:
            hook.client.create_registered_model(name, description="ONNX models, released by Airflow after their tests.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _delete_duplicate(hook: MlflowHook, name: str, version: Any) -> None:
    from mlflow.exceptions import MlflowException

    log.warning("Deleting version %s of model '%s': another release made the same one first.", version.version, name)
    with hook.mlflow_errors(f"version {version.version} of model '{name}'"):
        try:
            hook.client.delete_model_version(name, version.version)
        except MlflowException as error:
            # Gone already: the release that made it has seen the same.
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def set_alias(hook: MlflowHook, version: ModelVersion, alias: str) -> None:
    """Point the alias at the version; MLflow moves it in one step from wherever it was."""
    with hook.mlflow_errors(f"alias '{alias}' of model '{version.name}'"):
        hook.client.set_registered_model_alias(version.name, alias, str(version.version))


def set_stage(hook: MlflowHook, version: ModelVersion, stage: str) -> None:
    """Move the version to a legacy stage, for consumers that still load ``models:/<name>/<stage>``.

    Versions that hold the stage are archived, as such consumers take the newest one in it.
    """
    if stage not in ("Staging", "Production", "Archived"):
        raise Refused(f"stage '{stage}'", "is none of Staging, Production, Archived", "Choose one of them, or none.")
    with hook.mlflow_errors(f"stage '{stage}' of model '{version.name}'"):
        hook.client.transition_model_version_stage(
            version.name, str(version.version), stage, archive_existing_versions=stage != "Archived"
        )


def names_source(hook: MlflowHook, name: str, training_run_id: str, source: str) -> bool:
    """Tell whether any version names these objects; when it cannot be known, `Transient` is raised."""
    with hook.mlflow_errors(f"versions of model '{name}'"):
        found = hook.client.search_model_versions(f"name='{name}' and run_id='{training_run_id}'")
    return any(version.source.rstrip("/") == source.rstrip("/") for version in found)
