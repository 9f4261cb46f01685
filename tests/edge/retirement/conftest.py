"""Released versions in a folder of their own, as a release leaves them, with ages that a test chooses."""

from __future__ import annotations

import hashlib
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.retirement.records import Fate, Retirement, RetirementRules
from airflow_onnx.retirement.retire import Reason, Retirer
from airflow_onnx.storage import s3
from airflow_onnx.storage.object_metadata import object_metadata
from airflow_onnx.tracking import alias_log
from onnx_release.records import AliasMove
from onnx_release.training_runs import tags
from stack import mlflow_server
from tests.services import Services

DAY_MS = 86_400_000
FILES = ("MLmodel", "model.onnx", "report.json", "model.sig")


@dataclass
class Registry:
    """A registered model, and the folder with the objects of its versions."""

    hook: MlflowHook
    rest: MlflowRest
    folder: s3.S3Folder
    database: str
    model: str

    def run(self) -> str:
        """Return the id of a new training run."""
        return str(self.hook.client.create_run("0").info.run_id)

    def released(
        self,
        *,
        days: float = 200.0,
        run_id: str = "",
        sha256: str = "",
        model: str = "",
        server: str = "",
        **found: str,
    ) -> int:
        """Make a version with its objects and the record of its training run. Return its number.

        :param days: its age.
        :param server: the MLflow server in the metadata of its objects. Empty: this one.
        :param found: more tags of the version.
        """
        client, name = self.hook.client, model or self.model
        run_id, sha256 = run_id or self.run(), sha256 or hashlib.sha256(uuid.uuid4().bytes).hexdigest()
        source = f"{self.folder.uri}/{name}/{run_id}/{sha256[:16]}"
        metadata = object_metadata(self.hook.server, run_id, sha256) | ({"tracking-server": server} if server else {})
        for path in (*FILES, "-serving/triton/1/model.onnx"):
            key = f"{source}/{path}".replace("/-serving", "-serving").removeprefix(f"s3://{self.folder.bucket}/")
            self.folder.hook.get_conn().put_object(Bucket=self.folder.bucket, Key=key, Body=b"abc", Metadata=metadata)
        if not client.search_registered_models(f"name='{name}'"):
            client.create_registered_model(name)
        of_version = {tags.VERSION_SHA256: sha256, tags.VERSION_PRECISION: "exact", **found}
        number = int(client.create_model_version(name, source, run_id, tags=of_version).version)
        for tag, text in {
            tags.STATUS: "released", tags.REGISTERED_MODEL: name, tags.VERSION: str(number), tags.S3_URI: source,
            tags.PRECISION: "exact", tags.SHA256: sha256, tags.LAST_ATTEMPT: "released 2026-01-01T00:00:00Z",
        }.items():  # fmt: skip
            client.set_tag(run_id, tag, text)
        self.age(name, number, days)
        return number

    def age(self, name: str, number: int, days: float) -> None:
        """Change the time at which MLflow made a version."""
        with sqlite3.connect(self.database, timeout=30) as database:
            database.execute(
                "UPDATE model_versions SET creation_time = creation_time - ? WHERE name = ? AND version = ?",
                [int(days * DAY_MS), name, number],
            )

    def moved(self, alias: str, *versions: int, at: str = "2020-01-02T03:04:05Z") -> None:
        """Move an alias along versions, with its log."""
        before = None
        for number in versions:
            move = AliasMove(alias=alias, from_version=before, to_version=number, by="anna", at=at, why="x")
            alias_log.append(self.hook, self.model, move)
            self.hook.client.set_registered_model_alias(self.model, alias, str(number))
            before = number

    def retirer(self, **changes: Any) -> Retirer:
        """Return a retirement of this model's versions that keeps none of the newest."""
        rules = {"keep_newest": 0, "models": (self.model, f"{self.model}-*")}
        rules |= {name: changes.pop(name) for name in RetirementRules.model_fields if name in changes}
        given: dict[str, Any] = {
            "hook": self.hook, "rest": self.rest, "folder": self.folder, "rules": RetirementRules(**rules),
            "reason": Reason(by="anna"), "is_active": lambda *_: False,
        }  # fmt: skip
        return Retirer(**(given | changes))

    def numbers(self, model: str = "") -> list[int]:
        """Return the versions of a model that exist."""
        found = self.hook.client.search_model_versions(f"name='{model or self.model}'")
        return sorted(int(version.version) for version in found)

    def objects(self, number: int | None = None, model: str = "") -> list[str]:
        """Return the paths of the objects of a version, or of all."""
        below = f"{model or self.model}/"
        if number is not None:
            version = self.hook.client.get_model_version(model or self.model, str(number))
            below = version.source.removeprefix(f"{self.folder.uri}/")
        return sorted(path for path in s3.sizes(self.folder) if path.startswith(below))

    def tags_of(self, run_id: str) -> dict[str, str]:
        """Return the tags of a training run."""
        return dict(self.hook.client.get_run(run_id).data.tags)

    def run_of(self, number: int) -> str:
        """Return the training run of a version."""
        return str(self.hook.client.get_model_version(self.model, str(number)).run_id)


def going(found: Retirement) -> list[int]:
    """Return the versions that go."""
    return sorted(one.version for one in found.going)


def reasons(found: Retirement | Sequence[Fate]) -> dict[int, str]:
    """Return the reason of each version."""
    fates = found.versions if isinstance(found, Retirement) else found
    return {one.version: one.stays or one.reason for one in fates}


@pytest.fixture
def registry(hook: MlflowHook, folder: s3.S3Folder, services: Services) -> Iterator[Registry]:
    path = urlsplit(mlflow_server.sqlite_store(services.context)).path
    with MlflowRest(hook.server) as rest:
        yield Registry(hook, rest, replace(folder, rerun=None), path, f"model-{uuid.uuid4().hex[:8]}")
