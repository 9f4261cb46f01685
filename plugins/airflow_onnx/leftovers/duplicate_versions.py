"""Second versions of one training run and sha256: MLflow carried out a request after the release had repeated it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.leftovers import names
from airflow_onnx.leftovers.findings import Kind, Leftover
from onnx_release.training_runs import tags
from onnx_release.training_runs.records import key_values

_NO_STAGE = ("", "None")


@dataclass(frozen=True, kw_only=True)
class DuplicateVersions:
    """The search for ready versions with the model, training run, sha256 and source of an older version.

    :param folder_uri: the folder of the releases. Versions of other objects stay.
    """

    rest: MlflowRest
    folder_uri: str
    grace_s: float

    def find(self) -> Iterator[Leftover]:
        """Yield the duplicates that are older than the grace period by MLflow's clock. Nothing names them."""
        now_s = names.mlflow_now_s(self.rest)
        for first, *others in self._groups().values():
            for row in others:
                age_s = now_s - int(row.get("creation_timestamp") or 0) / 1000
                if age_s >= self.grace_s and not self._is_used(row):
                    yield Leftover(
                        kind=Kind.DUPLICATE,
                        place=f"models:/{row['name']}/{row['version']}",
                        age_s=age_s,
                        reason=f"version {first['version']} is the same release",
                    )

    def remove(self, leftover: Leftover) -> str:
        """Delete a version that still duplicates an older one. Return the reason if it stays."""
        name, _, number = leftover.place.removeprefix("models:/").rpartition("/")
        others = (row for group in self._groups().values() for row in group[1:])
        row = next((row for row in others if (row["name"], str(row["version"])) == (name, number)), None)
        if row is None:
            return "no older version is the same release now"
        if self._is_used(row):
            return "an alias, a stage or its training run names it now"
        self.rest.call("DELETE", "model-versions/delete", {"name": name, "version": number})
        return ""

    def _groups(self) -> dict[tuple[str, ...], list[dict[str, Any]]]:
        """Return the ready versions of each release, oldest first."""
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in sorted(self.rest.all_versions(), key=lambda row: int(row["version"])):
            sha256, source = key_values(row.get("tags")).get(tags.VERSION_SHA256), str(row.get("source") or "")
            if (
                sha256
                and row.get("run_id")
                and row.get("status") == "READY"
                and source.startswith(f"{self.folder_uri}/")
            ):
                groups[row["name"], row["run_id"], sha256, source].append(row)
        return groups

    def _is_used(self, row: dict[str, Any]) -> bool:
        """Return True for a version with an alias, which a search leaves out, a stage, or a run that names it."""
        found = names.registered_version(self.rest, row["name"], row["version"])
        if found.get("aliases") or str(found.get("current_stage") or "") not in _NO_STAGE:
            return True
        run = names.training_run(self.rest, row["run_id"])
        return run is not None and str(row["version"]) in (
            text for name, text in run.tags.items() if name.startswith(f"{tags.ROOT}.") and name.endswith(".version")
        )
