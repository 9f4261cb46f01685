"""Versions of ONNX models in MLflow's registry: one for each training run and sha256."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_onnx.errors import TrackingRefused
from onnx_release.errors import Refused, Transient
from onnx_release.records import ModelVersion
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook

log = logging.getLogger(__name__)

STAGES = ("Staging", "Production")


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRequest:
    """The properties of a version to create. `name`, `training_run_id` and `sha256` identify it."""

    name: str
    training_run_id: str
    sha256: str
    source: str
    description: str
    tags: dict[str, str] = field(default_factory=dict)


def find_versions(hook: MlflowHook, name: str, training_run_id: str, sha256: str) -> list[Any]:
    """Return the versions of one artifact of one training run, oldest first.

    There is at most one, unless two releases create it at the same time.
    """
    return [v for v in _versions(hook, name, training_run_id) if v.tags.get(tags.VERSION_SHA256) == sha256]


def _versions(hook: MlflowHook, name: str, training_run_id: str) -> list[Any]:
    with hook.mlflow_errors(f"The model '{name}'"):
        found = hook.client.search_model_versions(f"name='{name}' and run_id='{training_run_id}'")
    return sorted(found, key=lambda version: int(version.version))


def is_release_of(hook: MlflowHook, name: str, version: str, training_run_id: str) -> bool:
    """Return True if the version exists and was made by a release of this training run.

    :param name: the model's name from a tag, which may be any text.
    :param version: the version's number from a tag, which may be any text.
    """
    try:
        with hook.mlflow_errors(f"The version {version} of model '{name}'"):
            found = hook.client.get_model_version(name, version)
    except Refused:
        return False
    return found.run_id == training_run_id and tags.VERSION_SHA256 in found.tags


def get_version(hook: MlflowHook, name: str, number: int) -> Any:
    """Return MLflow's version."""
    with hook.mlflow_errors(f"The version {number} of model '{name}'"):
        return hook.client.get_model_version(name, str(number))


def ensure_version(hook: MlflowHook, request: VersionRequest) -> ModelVersion:
    """Create the version, or return the existing one.

    MLflow has no unique key. Two releases at the same time may both create a version. Each then finds both, keeps the
    lower number and deletes the other, and one version remains. A request that MLflow carries out later, after its
    answer was lost, makes another one: `delete_duplicates` is called again at the promotion and by the garbage
    collection.
    """
    created = None
    if not find_versions(hook, request.name, request.training_run_id, request.sha256):
        created = _create(hook, request)
    kept = delete_duplicates(hook, request.name, request.training_run_id, request.sha256)
    if kept is None:
        raise Transient(
            f"The model '{request.name}'",
            "does not list the version that was just created",
            "The registry may be late. Airflow tries again.",
        )
    if kept.status != "READY":
        raise Transient(
            f"Version {kept.version} of model '{request.name}'",
            f"has the status {kept.status}",
            "The registry is still copying it. Airflow tries again.",
        )
    return ModelVersion(
        name=request.name,
        version=int(kept.version),
        sha256=request.sha256,
        source=kept.source,
        training_run_id=request.training_run_id,
        created=created is not None and created.version == kept.version,
    )


def delete_duplicates(hook: MlflowHook, name: str, training_run_id: str, sha256: str) -> Any:
    """Delete every version of one artifact of one training run but the oldest, and return that; None without any.

    A version that has an alias or a stage stays.
    """
    found = find_versions(hook, name, training_run_id, sha256)
    for duplicate in found[1:]:
        _delete_duplicate(hook, name, duplicate)
    return found[0] if found else None


def _create(hook: MlflowHook, request: VersionRequest) -> Any:
    from mlflow.exceptions import MlflowException

    with hook.mlflow_errors(f"The registered model '{request.name}'"):
        try:
            hook.client.create_registered_model(
                request.name, description="ONNX models, released by Airflow after their tests."
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    action = "Set MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX on a server that refuses the source."
    with hook.mlflow_errors(f"A version of model '{request.name}' with source {request.source}", action):
        return hook.client.create_model_version(
            name=request.name,
            source=request.source,
            run_id=request.training_run_id,
            tags={**request.tags, tags.VERSION_SHA256: request.sha256},
            description=request.description,
            # The client would wait with a line on standard error, which Airflow shows as an error.
            await_creation_for=0,
        )


def update_version(hook: MlflowHook, request: VersionRequest, number: int) -> None:
    """Give an existing version the description and the tags of the request. Its other tags stay."""
    with hook.mlflow_errors(f"The version {number} of model '{request.name}'"):
        found = hook.client.get_model_version(request.name, str(number))
        for key, text in request.tags.items():
            if found.tags.get(key) != text:
                hook.client.set_model_version_tag(request.name, str(number), key, text)
        if found.description != request.description:
            hook.client.update_model_version(request.name, str(number), request.description)


def _delete_duplicate(hook: MlflowHook, name: str, version: Any) -> None:
    from mlflow.exceptions import MlflowException

    with hook.mlflow_errors(f"The version {version.version} of model '{name}'"):
        try:
            # A search leaves out the aliases.
            present = hook.client.get_model_version(name, version.version)
            if present.aliases or present.current_stage not in (None, "", "None"):
                log.warning("Version %s of model '%s' is a duplicate and stays: it is in use.", version.version, name)
                return
            log.warning("Deleting version %s of model '%s': it is a duplicate.", version.version, name)
            hook.client.delete_model_version(name, version.version)
        except MlflowException as error:
            # The other release may have deleted it already.
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def alias_holder(hook: MlflowHook, name: str, alias: str) -> Any:
    """Return MLflow's version that has the alias, or None. MLflow removes the aliases of a deleted version."""
    model = _registered_model(hook, name)
    number = (model.aliases or {}).get(alias) if model else None
    if number is None:
        return None
    with hook.mlflow_errors(f"The version {number} of model '{name}'"):
        # Another server may keep the alias of a deleted version.
        return _or_none(lambda: hook.client.get_model_version(name, str(number)))


def stage_holder(hook: MlflowHook, name: str, stage: str) -> Any:
    """Return MLflow's newest version in the legacy stage, or None."""
    if stage not in STAGES or _registered_model(hook, name) is None:
        return None
    with hook.mlflow_errors(f"The stage '{stage}' of model '{name}'"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        found = hook.client.get_latest_versions(name, [stage])
    return max(found, key=lambda version: int(version.version), default=None)


def _registered_model(hook: MlflowHook, name: str) -> Any:
    with hook.mlflow_errors(f"The registered model '{name}'"):
        return _or_none(lambda: hook.client.get_registered_model(name))


def _or_none(get: Callable[[], Any]) -> Any:
    """Return the object, or None if MLflow does not have it."""
    from mlflow.exceptions import MlflowException

    try:
        return get()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def tags_of_model(hook: MlflowHook, name: str) -> dict[str, str]:
    """Return the tags of the registered model; without the model there are none."""
    model = _registered_model(hook, name)
    return dict(model.tags) if model else {}


def set_tag_of_model(hook: MlflowHook, name: str, key: str, text: str) -> None:
    """Set a tag of the registered model."""
    with hook.mlflow_errors(f"The registered model '{name}'"):
        hook.client.set_registered_model_tag(name, key, text)


def delete_tag_of_model(hook: MlflowHook, name: str, key: str) -> None:
    """Delete a tag of the registered model."""
    with hook.mlflow_errors(f"The registered model '{name}'"):
        hook.client.delete_registered_model_tag(name, key)


def set_version_tag(hook: MlflowHook, name: str, number: int, key: str, text: str) -> None:
    """Set a tag of a version."""
    with hook.mlflow_errors(f"The version {number} of model '{name}'"):
        hook.client.set_model_version_tag(name, str(number), key, text[: tags.VALUE_MAX_CHARACTERS])


def set_alias(hook: MlflowHook, name: str, alias: str, version: int) -> None:
    """Move the alias to the version, in one step."""
    with hook.mlflow_errors(f"The alias '{alias}' of model '{name}'"):
        hook.client.set_registered_model_alias(name, alias, str(version))


def set_stage(hook: MlflowHook, version: ModelVersion, stage: str) -> None:
    """Move the version to a legacy stage, for consumers that load ``models:/<name>/<stage>``.

    Such consumers load the newest version of the stage, and its other versions are archived.

    :raises TrackingRefused: if the stage is not in `STAGES`.
    """
    if stage not in STAGES:
        raise TrackingRefused(
            f"The stage '{stage}'",
            f"is not in {', '.join(STAGES)}",
            "Choose one of them, or none.",
            code="unknown_stage",
        )
    with hook.mlflow_errors(f"The stage '{stage}' of model '{version.name}'"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        hook.client.transition_model_version_stage(
            version.name, str(version.version), stage, archive_existing_versions=True
        )


def of_source(hook: MlflowHook, name: str, training_run_id: str, source: str) -> Any:
    """Return MLflow's version that was made from these objects, with its aliases, or None.

    :param source: the URI of the objects' folder.
    :raises Transient: if MLflow does not answer.
    """
    for version in _versions(hook, name, training_run_id):
        if version.source.rstrip("/") == source.rstrip("/"):
            return get_version(hook, name, int(version.version))
    return None
