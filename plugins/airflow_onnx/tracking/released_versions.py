"""Versions of MLflow's registry that this package released: those that an alias holds, or all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

from airflow_onnx.hooks.mlflow_rest import MlflowRest
from onnx_release.records.base import Record
from onnx_release.training_runs import tags
from onnx_release.training_runs.names import validate_model_name
from onnx_release.training_runs.records import RegisteredModel, key_values

# A tag that only a release sets. Without its sha256 a released version is still one, and its verification fails.
_MARKS = (tags.VERSION_SHA256, tags.VERSION_STATUS, tags.VERSION_TRAINING_RUN)
_READY = "READY"


class ReleasedVersion(Record):
    """Version that this package released. Its texts are not trusted.

    Attributes:
        name: The registered model.
        version: The number of the version.
        sha256: The tag with the sha256 of its files, empty without it.
        source: The folder of its files.
        training_run_id: The id of the training run, empty without one.
        created_at_ms: The time of its registration, in milliseconds since 1970.
        aliases: The aliases that hold it, sorted.
        status: The tag with the state of its release.
        signature: The tag with the key that signed its files, empty without a signature.
    """

    name: str
    version: int
    sha256: str
    source: str
    training_run_id: str
    created_at_ms: int
    aliases: tuple[str, ...] = ()
    status: str = ""
    signature: str = ""

    @property
    def label(self) -> str:
        """The name for people, such as ``churn-onnx v3``."""
        return f"{self.name} v{self.version}"

    @classmethod
    def from_json(cls, row: dict[str, Any], aliases: Iterable[str]) -> Self:
        """Read one version of a response."""
        found = key_values(row.get("tags"))
        return cls(
            name=row["name"],
            version=int(row["version"]),
            sha256=found.get(tags.VERSION_SHA256, ""),
            source=row.get("source") or "",
            training_run_id=row.get("run_id") or "",
            created_at_ms=int(row.get("creation_timestamp") or 0),
            aliases=tuple(sorted(aliases)),
            status=found.get(tags.VERSION_STATUS, ""),
            signature=found.get(tags.VERSION_SIGNATURE, ""),
        )


def released_versions(
    rest: MlflowRest, models: Sequence[str] = (), *, all_versions: bool = False
) -> list[ReleasedVersion]:
    """Return released versions, sorted by model, the newest version of each first.

    Without names there is one call for each 1000 models and one for each 1000 versions, else two for each name.

    :param models: the registered models; empty for all that the account may read.
    :param all_versions: also those that no alias holds.
    :raises TrackingRefused: if a named model does not exist.
    :raises ParameterRefused: for a name that no registered model of a release has.
    """
    rows: Iterable[dict[str, Any]]
    if models:
        found = [rest.registered_model(name) for name in sorted({validate_model_name(name) for name in models})]
        rows = (row for model in found for row in rest.all_versions(model.name))
    else:
        found, rows = rest.registered_models(), rest.all_versions()
    holders = {model.name: _aliases_by_version(model) for model in found}
    released = [
        ReleasedVersion.from_json(row, holders.get(row["name"], {}).get(int(row["version"]), ()))
        for row in rows
        if row.get("status", _READY) == _READY and not key_values(row.get("tags")).keys().isdisjoint(_MARKS)
    ]
    chosen = (one for one in released if all_versions or one.aliases)
    return sorted(chosen, key=lambda one: (one.name, -one.version))


def _aliases_by_version(model: RegisteredModel) -> dict[int, list[str]]:
    holders: dict[int, list[str]] = {}
    for alias, version in model.aliases.items():
        holders.setdefault(version, []).append(alias)
    return holders
