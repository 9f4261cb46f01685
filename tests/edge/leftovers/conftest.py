"""A folder of releases of its own, with objects as a release writes them and versions that name them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.leftovers.collect import Collector
from airflow_onnx.leftovers.findings import Findings
from airflow_onnx.storage import s3
from airflow_onnx.storage.object_metadata import object_metadata
from onnx_release.training_runs import tags

# The header Date has whole seconds, and may be a second behind the time of an object.
NO_GRACE_S = -5.0


@dataclass
class Releases:
    """The folder of the releases of one team, and what a test puts there."""

    hook: MlflowHook
    rest: MlflowRest
    folder: s3.S3Folder
    model: str

    def run(self, **given: str) -> str:
        """Return the id of a new training run with these tags."""
        run = self.hook.client.create_run("0")
        for name, text in given.items():
            self.hook.client.set_tag(run.info.run_id, f"{tags.ROOT}.{name}", text)
        return str(run.info.run_id)

    def put(self, run_id: str, *, server: str = "") -> str:
        """Put two objects of an artifact and return the URI of their folder."""
        uri = f"{self.folder.uri}/{self.model}/{run_id}/{uuid.uuid4().hex[:16]}"
        for name in ("MLmodel", "data/model.onnx"):
            self.put_object(f"{uri}/{name}", run_id, server)
        return uri

    def put_object(self, uri: str, run_id: str, server: str = "") -> None:
        """Put an object of a release, or of one for another MLflow server."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        metadata = object_metadata(self.hook.server, run_id, "0" * 64) | ({"tracking-server": server} if server else {})
        self.client.put_object(Bucket=bucket, Key=key, Body=b"abc", Metadata=metadata)

    def register(self, run_id: str, source: str, name: str = "") -> int:
        """Register a version of these objects as a release does, and return its number."""
        client, model = self.hook.client, name or self.model
        if not client.search_registered_models(f"name='{model}'"):
            client.create_registered_model(model)
        made = client.create_model_version(model, source, run_id, tags={tags.VERSION_SHA256: "0" * 64})
        return int(made.version)

    def collector(self, **changes: Any) -> Collector:
        """Return a collector without a grace period."""
        given: dict[str, Any] = {
            "rest": self.rest, "folder": self.folder, "staging_uri": f"{self.folder.uri}-staging",
            "checked_uri": f"{self.folder.uri}-staging",
            "grace_s": NO_GRACE_S, "work_keep_s": NO_GRACE_S, "is_active": lambda *_: False,
        }  # fmt: skip
        return Collector(**(given | changes))

    def keys(self, uri: str) -> list[str]:
        """Return the paths of the objects of a folder."""
        return sorted(s3.sizes(s3.folder_at("minio_default", uri)))

    @property
    def client(self) -> Any:
        """boto3's client with the account of the releases."""
        return self.folder.hook.get_conn()


def places(found: Findings, *kinds: str) -> list[str]:
    """Return the places of the leftovers of these kinds."""
    return sorted(one.place for one in found.leftovers if one.kind in (kinds or ("objects",)))


@pytest.fixture
def releases(hook: MlflowHook, folder: s3.S3Folder) -> Iterator[Releases]:
    with MlflowRest(hook.server) as rest:
        yield Releases(hook, rest, replace(folder, rerun=None), f"model-{uuid.uuid4().hex[:8]}")
