"""Names of objects in MLflow: the versions of the registry, and the records of training runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from airflow_onnx import airflow_urls
from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.storage import stored_objects
from airflow_onnx.tracking.run_log import WAITING
from onnx_release.training_runs import tags
from onnx_release.training_runs.records import TrainingRun, key_values

IsActive = Callable[[str, str], bool]
"""Returns True for a DAG run that is queued or runs, from the ids of DAG and DAG run."""

_URI_MAX_CHARACTERS = 2048
_IN_PROGRESS = ("triggered", "running", WAITING)


@dataclass(frozen=True, slots=True)
class Names:
    """Everything in the registry that names objects, read completely.

    :param versions: the versions as MLflow returns them.
    :param uris: the folders that they name, and the folders above these.
    """

    versions: tuple[dict[str, Any], ...]
    uris: frozenset[str]
    _named: frozenset[str]

    @classmethod
    def read(cls, rest: MlflowRest) -> Names:
        """Read all versions.

        :raises TrackingRefused: if one page cannot be read; likewise `Transient`.
        """
        versions = tuple(rest.all_versions())
        # Only such an address can name an object in a store. The length of a key is limited by S3.
        found = (_normal(uri) for uri in _named_uris(rest, versions) if len(uri) <= _URI_MAX_CHARACTERS)
        named = frozenset(uri for uri in found if uri.startswith("s3://"))
        return cls(versions, named.union(*map(_parents, named)), named)

    def have(self, uri: str) -> bool:
        """Return True if a version names the folder, a folder around it, or a place in it."""
        folder = _normal(uri)
        return folder in self.uris or not self._named.isdisjoint(_parents(folder))

    @property
    def released(self) -> bool:
        """True if the registry has a version that this package made."""
        return any(tags.VERSION_SHA256 in key_values(version.get("tags")) for version in self.versions)


def _named_uris(rest: MlflowRest, versions: Iterable[dict[str, Any]]) -> Iterator[str]:
    for version in versions:
        source = str(version.get("source") or "")
        yield source
        # A copy of a version names it by `models:/…`, and keeps its files after the first one was deleted.
        if source.startswith("models:/") and not source.startswith("models:/m-"):
            yield rest.version_files(version["name"], version["version"])
        yield from key_values(version.get("tags")).get(tags.VERSION_SERVING, "").split(", ")


def _normal(uri: str) -> str:
    return re.sub(r"^s3[an]:", "s3:", uri).rstrip("/")


def _parents(uri: str) -> set[str]:
    """Return the folders above a folder, without bucket and scheme."""
    found = set()
    while (uri := uri.rpartition("/")[0]).count("/") > 2:
        found.add(uri)
    return found


def training_run(rest: MlflowRest, run_id: str) -> TrainingRun | None:
    """Return a training run, deleted or not. Return None if MLflow does not have it.

    :raises TrackingRefused: if the account may not read it.
    """
    try:
        return rest.run(run_id)
    except TrackingRefused as refusal:
        if refusal.code != "not_found":
            raise
        return None


def run_needs(run: TrainingRun, uri: str, is_active: IsActive) -> str:
    """Return the reason why a training run needs the objects of a folder. Empty if it does not.

    :param is_active: the state of the DAG run of its release. A cleared one goes on, and the tags have its first end.
    """
    if any(text == uri for name, text in run.tags.items() if name.startswith(f"{tags.ROOT}.")):
        return "the record of its training run names it"
    return in_progress(run, is_active)


def in_progress(run: TrainingRun, is_active: IsActive) -> str:
    """Return the reason why nothing of a training run may be removed now. Empty if no release of it is in progress.

    :param is_active: as for `run_needs`.
    """
    attempt = run.tags.get(tags.LAST_ATTEMPT, "").partition(" ")[0]
    dag_id, dag_run_id = airflow_urls.dag_run_of(run.tags.get(tags.DAG_RUN_URL, ""))
    if (
        run.tags.get(tags.STATUS) in _IN_PROGRESS
        or attempt in _IN_PROGRESS
        or (dag_id and is_active(dag_id, dag_run_id))
    ):
        return "a release of its training run is in progress"
    return ""


def mlflow_now_s(rest: MlflowRest) -> float:
    """Return the time of MLflow's server in s since 1970.

    :raises StorageRefused: ``no_store_clock`` if its answer has no time.
    """
    header = rest.raw("GET", "version").headers.get("date")
    return stored_objects.read_date(header, f"MLflow at {rest.server.tracking_uri}").timestamp()


def registered_version(rest: MlflowRest, name: str, version: str) -> dict[str, Any]:
    """Return a version of the registry with its aliases, which a search leaves out."""
    found: dict[str, Any] = rest.call("GET", "model-versions/get", {"name": name, "version": version})["model_version"]
    return found
