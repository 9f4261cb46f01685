"""Statements that are true of every deployment at rest, checked in MinIO, MLflow and Airflow themselves.

Nothing here uses the code that releases: only the names of tags and folders, which are the interface of the records.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from onnx_release.artifact.digests import folder_sha256
from onnx_release.limits import REPORT_FILE
from onnx_release.records import FileDigest
from onnx_release.training_runs import tags
from soak.airflow_state import AirflowState
from soak.folders import Folders

Kind = Literal["doubled", "lost", "alias", "untrue", "orphan"]
KINDS: tuple[Kind, ...] = ("doubled", "lost", "alias", "untrue", "orphan")

_IN_PROGRESS = ("triggered", "running", "waiting")


class Violation(NamedTuple):
    """A statement that is not true: its kind, and a sentence that names the object."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The servers and folders that releases write to.

    :param store: a boto3 client that may read the whole bucket.
    :param mlflow: an `MlflowClient`.
    :param airflow: the DAG runs and pools, read before the call: a release that ends in between is then in progress.
    """

    store: Any
    bucket: str
    mlflow: Any
    airflow: AirflowState
    folders: Folders = field(default_factory=Folders)


def violations(
    places: Places, asked: Collection[str] = (), models: Collection[str] | None = None, ignore: Collection[str] = ()
) -> list[Violation]:
    """Return every statement that is not true.

    :param asked: the training runs for which a release was requested. Each must have an answer.
    :param models: check these registered models and the training runs of `asked`; None for all of the deployment.
    :param ignore: prefixes of keys in the bucket that do not belong to releases, such as files of inputs.
    """
    found = _Deployment(places, asked, models, tuple(ignore))
    parts = (found.versions(), found.aliases(), found.answers(), found.unnamed(), found.leftovers())
    return [violation for part in parts for violation in part]


@dataclass(frozen=True)
class _Deployment:
    """One reading of the servers."""

    places: Places
    asked: Collection[str]
    models: Collection[str] | None
    ignore: tuple[str, ...]

    @cached_property
    def registered(self) -> dict[str, Any]:
        """The registered models by name."""
        found = _pages(lambda token: self.places.mlflow.search_registered_models(page_token=token))
        return {model.name: model for model in found if self.models is None or model.name in self.models}

    @cached_property
    def released(self) -> dict[tuple[str, int], Any]:
        """The versions with a sha256: those of releases. Other versions belong to other programs."""
        found = {}
        for name in self.registered:
            search = f"name='{name}'"
            for version in _pages(
                lambda token, search=search: self.places.mlflow.search_model_versions(search, page_token=token)
            ):
                if tags.VERSION_SHA256 in version.tags:
                    found[name, int(version.version)] = version
        return found

    @cached_property
    def keys(self) -> set[str]:
        """The keys of the bucket that belong to releases."""
        pages = self.places.store.get_paginator("list_objects_v2").paginate(Bucket=self.places.bucket)
        keys = {str(item["Key"]) for page in pages for item in page.get("Contents", [])}
        return {key for key in keys if not key.startswith(self.ignore) and self._in_scope(key)}

    @cached_property
    def runs(self) -> dict[str, Any]:
        """The training runs with a state of a release, and those of `asked`."""
        client = self.places.mlflow
        found = {run_id: client.get_run(run_id) for run_id in self.asked}
        if self.models is None:
            experiments = [one.experiment_id for one in _pages(lambda t: client.search_experiments(page_token=t))]
            search = f"tags.`{tags.STATUS}` != ''"
            for run in _pages(lambda token: client.search_runs(experiments, search, page_token=token)):
                found[run.info.run_id] = run
        return found

    def _in_scope(self, key: str) -> bool:
        return self.models is None or any(f"/{name}/" in f"/{key}" for name in self.models)

    def versions(self) -> Iterator[Violation]:
        """Check that each is READY, that there is one for each training run and sha256, and that its objects exist."""
        same: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for (name, number), version in self.released.items():
            if version.status != "READY":
                yield Violation("lost", f"Version {number} of '{name}' has the status {version.status}.")
            else:
                same[name, version.run_id, version.tags[tags.VERSION_SHA256]].append(number)
            for problem in self._problems_of_objects(version):
                yield Violation("lost", f"Version {number} of '{name}': {problem}.")
        for (name, run_id, sha256), numbers in same.items():
            if len(numbers) > 1:
                text = f"Versions {sorted(numbers)} of '{name}' are all of training run {run_id} and {sha256[:16]}."
                yield Violation("doubled", text)

    def _problems_of_objects(self, version: Any) -> Iterator[str]:
        """Yield the differences between the objects of a version and its sha256, its report, and its layouts."""
        prefix = self._prefix(version)
        if not prefix:
            yield f"its source {version.source} is not in the bucket '{self.places.bucket}'"
            return
        stored = {key.removeprefix(prefix): self._digest(key) for key in self.keys if key.startswith(prefix)}
        files = [FileDigest(path=path, sha256=digest, size_bytes=0) for path, digest in stored.items()]
        if (found := folder_sha256(files)) != version.tags[tags.VERSION_SHA256]:
            yield f"its {len(files)} objects give the sha256 {found}, not {version.tags[tags.VERSION_SHA256]}"
        if REPORT_FILE not in stored:
            yield f"its {REPORT_FILE} is missing"
            return
        report = json.loads(self._read(prefix + REPORT_FILE))
        if report["status"] != "accepted" or report["artifact"]["sha256"] != version.tags[tags.VERSION_SHA256]:
            yield f"its {REPORT_FILE} is {report['status']} and belongs to {report['artifact']['sha256']}"
        for file in (file for layout in report.get("serving") or () for file in layout["files"]):
            key = f"{prefix.rstrip('/')}-serving/{file['path']}"
            if key not in self.keys or self._digest(key) != file["sha256"]:
                yield f"the object {key} of its serving layouts is missing or changed"

    def _prefix(self, version: Any) -> str:
        """Return the folder of a version in the bucket, or an empty text for one outside of it."""
        root = f"s3://{self.places.bucket}/"
        return f"{version.source.removeprefix(root).rstrip('/')}/" if version.source.startswith(root) else ""

    def _read(self, key: str) -> bytes:
        return bytes(self.places.store.get_object(Bucket=self.places.bucket, Key=key)["Body"].read())

    def _digest(self, key: str) -> str:
        body, digest = self.places.store.get_object(Bucket=self.places.bucket, Key=key)["Body"], hashlib.sha256()
        for block in body.iter_chunks(2**20):
            digest.update(block)
        return digest.hexdigest()

    def aliases(self) -> Iterator[Violation]:
        """Check that each alias of a model with releases names a verified version of a released training run."""
        names = {name for name, _ in self.released}
        for name in names:
            for alias, number in (self.registered[name].aliases or {}).items():
                version = self.released.get((name, int(number)))
                subject = f"The alias '{alias}' of '{name}' names version {number}"
                if version is None:
                    yield Violation("alias", f"{subject}, which does not exist or has no sha256.")
                elif not version.tags.get(tags.VERSION_STATUS, "").startswith("released"):
                    state = version.tags.get(tags.VERSION_STATUS)
                    yield Violation("alias", f"{subject}, which has the state {state!r}.")
                elif self._status(version.run_id) not in ("released", None):
                    text = f"{subject}, and its training run {version.run_id} has the state"
                    yield Violation("untrue", f"{text} {self._status(version.run_id)!r}.")

    def _status(self, run_id: str) -> str | None:
        """Return the state of a training run in scope, None for one whose release is in progress."""
        run = self.runs.get(run_id)
        if run is None or self.places.airflow.is_alive(run.data.tags.get(tags.DAG_RUN_ID, "")):
            return None
        return str(run.data.tags.get(tags.STATUS, ""))

    def answers(self) -> Iterator[Violation]:
        """Check that each training run has an answer, and that it is true."""
        for run_id, run in self.runs.items():
            if problem := self._problem_of_answer(run_id, run.data.tags):
                yield Violation("untrue", f"The training run {run_id} {problem}.")

    def _problem_of_answer(self, run_id: str, found: dict[str, str]) -> str:
        status, dag_run = found.get(tags.STATUS, ""), found.get(tags.DAG_RUN_ID, "")
        alive = self.places.airflow.is_alive(dag_run)
        if not status:
            return "" if alive else "has no answer"
        if status in _IN_PROGRESS:
            return "" if alive else f"has the state '{status}', and its DAG run {dag_run!r} is not alive"
        if status == "released":
            return self._problem_of_release(run_id, found)
        if not found.get(tags.REASON):
            return f"is {status} without a reason"
        if self.places.airflow.has_succeeded(dag_run):
            return f"is {status}, and its DAG run {dag_run!r} has succeeded"
        return ""

    def _problem_of_release(self, run_id: str, found: dict[str, str]) -> str:
        name, number = found.get(tags.REGISTERED_MODEL, ""), found.get(tags.VERSION, "")
        if self.models is not None and name not in self.models:
            return ""
        version = self.released.get((name, int(number))) if number.isdecimal() else None
        subject = f"is released as version {number!r} of '{name}'"
        if version is None or version.status != "READY":
            return f"{subject}, which does not exist or is not READY"
        if version.run_id != run_id or version.tags[tags.VERSION_SHA256] != found.get(tags.SHA256):
            return f"{subject}, which belongs to training run {version.run_id} or has another sha256"
        return ""

    def unnamed(self) -> Iterator[Violation]:
        """Check that each object and each multipart upload belongs to a version or to a release in progress."""
        named = {self._prefix(version).rstrip("/") for version in self.released.values()} - {""}
        folders = tuple(f"{folder}{end}" for folder in named for end in ("/", "-serving/"))
        living = self._runs_in_progress()
        for key in sorted(self.keys):
            if not key.startswith(folders) and not any(f"/{run_id}/" in key for run_id in living):
                yield Violation("orphan", f"The object {key} belongs to no version.")
        uploads = self.places.store.list_multipart_uploads(Bucket=self.places.bucket).get("Uploads", [])
        for upload in uploads:
            key = str(upload["Key"])
            if self._in_scope(key) and not any(f"/{run_id}/" in key for run_id in living):
                yield Violation("orphan", f"The multipart upload of {key} was neither completed nor removed.")

    def _runs_in_progress(self) -> set[str]:
        alive = self.places.airflow.is_alive
        return {run_id for run_id, run in self.runs.items() if alive(run.data.tags.get(tags.DAG_RUN_ID, ""))}

    def leftovers(self) -> Iterator[Violation]:
        """Check that no lock of an alias, pool slot, work folder, scratch folder or host lock is left."""
        airflow = self.places.airflow
        if not airflow.alive():
            for name, model in self.registered.items():
                if any(key.startswith(tags.PROMOTION_LOCK) for key in model.tags):
                    yield Violation("orphan", f"The model '{name}' is locked, and no release is in progress.")
            for pool, slots in airflow.occupied.items():
                yield Violation("orphan", f"The pool '{pool}' has {slots} occupied slots without a release.")
        for text in self.places.folders.leftovers(airflow):
            yield Violation("orphan", text)


def _pages(search: Any) -> Iterator[Any]:
    """Yield the entries of all pages of a search in MLflow."""
    token = None
    while True:
        page = search(token)
        yield from page
        token = getattr(page, "token", None)
        if not token:
            return
