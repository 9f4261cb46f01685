"""Versions of the registry that never became ready: the server or the client ended while it made them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.leftovers import names
from airflow_onnx.leftovers.findings import Kind, Leftover
from onnx_release.training_runs import tags
from onnx_release.training_runs.records import key_values

PENDING = "PENDING_REGISTRATION"


@dataclass(frozen=True, kw_only=True)
class PendingVersions:
    """The search for versions of releases with the status ``PENDING_REGISTRATION``.

    :param folder_uri: the folder of the releases. Versions of other objects stay.
    """

    rest: MlflowRest
    folder_uri: str
    grace_s: float

    def find(self) -> Iterator[Leftover]:
        """Yield the versions that are older than the grace period by MLflow's clock."""
        now_s = names.mlflow_now_s(self.rest)
        for row in self.rest.all_versions():
            age_s = now_s - int(row.get("creation_timestamp") or 0) / 1000
            if age_s >= self.grace_s and self._is_pending(row) and self._stays_pending(row["name"], row["version"]):
                yield Leftover(
                    kind=Kind.VERSION,
                    place=f"models:/{row['name']}/{row['version']}",
                    age_s=age_s,
                    reason="its registration was begun and not ended",
                )

    def remove(self, leftover: Leftover) -> str:
        """Delete a version that is still pending. Return the reason if it stays."""
        name, _, version = leftover.place.removeprefix("models:/").rpartition("/")
        if not self._stays_pending(name, version):
            return "it is ready now, or has an alias"
        self.rest.call("DELETE", "model-versions/delete", {"name": name, "version": version})
        return ""

    def _stays_pending(self, name: str, version: str) -> bool:
        return self._is_pending(names.registered_version(self.rest, name, version))

    def _is_pending(self, row: dict[str, Any]) -> bool:
        of_release = tags.VERSION_SHA256 in key_values(row.get("tags"))
        below = str(row.get("source") or "").startswith(f"{self.folder_uri}/")
        return row.get("status") == PENDING and of_release and below and not row.get("aliases")
