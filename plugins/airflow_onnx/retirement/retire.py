"""Retirement of the old versions of one folder of releases.

The version is deleted first, then the record on its training run is written, then its objects are deleted: a version
that is ready never lacks its objects. A tag of the model has the retirement until its end: see `journal`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from airflow_onnx import validation
from airflow_onnx.dag_runs import State
from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.leftovers import names
from airflow_onnx.leftovers.names import IsActive, Names
from airflow_onnx.leftovers.release_objects import ARTIFACT
from airflow_onnx.log_lines import one_line
from airflow_onnx.retirement import journal, run_record
from airflow_onnx.retirement.journal import Begun
from airflow_onnx.retirement.judge import Judge, is_release_folder
from airflow_onnx.retirement.records import Fate, Retirement, RetirementRules
from airflow_onnx.storage import s3, stored_objects
from airflow_onnx.storage.object_metadata import server_name
from airflow_onnx.storage.serving_layouts import layouts_folder
from airflow_onnx.storage.stored_objects import StoredFolder
from airflow_onnx.tracking.promotion_lock import promotion_lock
from onnx_release.errors import ParameterRefused, ReleaseError, Transient
from onnx_release.training_runs import tags
from onnx_release.training_runs.records import ModelVersionEntry, RegisteredModel

log = logging.getLogger(__name__)

_TEXT_MAX = {"by": 100, "why": 500, "dag_run": 250}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """The person and the reason of a retirement.

    :param why: one sentence. Empty: the rules.
    :param holder: the task in the lock of a model, see `promotion_lock.holder`. Empty for the command.
    """

    by: str
    why: str = ""
    dag_run: str = ""
    holder: str = ""

    def begun(self, fate: Fate) -> Begun:
        """Return the entry of the journal."""
        texts = {"by": self.by, "why": self.why or fate.reason, "dag_run": self.dag_run}
        return Begun(
            run_id=fate.run_id,
            sha256=fate.sha256,
            precision=fate.precision,
            source=fate.source,
            at=tags.now(),
            **{name: one_line(text, _TEXT_MAX[name]) for name, text in texts.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Retirer:
    """The retirement of versions whose objects are in one folder of releases.

    :param folder: the folder of the releases.
    :param is_active: returns True for the DAG run of a release in progress, whose version stays.
    """

    hook: MlflowHook
    rest: MlflowRest
    folder: s3.S3Folder
    rules: RetirementRules
    reason: Reason
    is_active: IsActive

    def run(self, *, dry_run: bool) -> Retirement:
        """Decide about each version, and retire those that go unless it is a dry run.

        :raises Refused: if the search is incomplete; likewise `Transient`.
        """
        found = self.find()
        return found if dry_run else self.retire(found)

    def find(self) -> Retirement:
        """Decide about each version. Nothing is changed."""
        fates = [self._allowed(one) for one in self._fates()]
        fates.sort(key=lambda one: not one.retires)
        sizes = self._sizes() if fates else {}
        return Retirement(
            place=self.folder.uri,
            dry_run=True,
            rules=self.rules,
            versions=tuple(
                one.replace(size_bytes=stored.size_bytes, objects=len(stored.paths))
                if (stored := sizes.get(one.source.rstrip("/")))
                else one
                for one in fates
            ),
        )

    def retire(self, found: Retirement) -> Retirement:
        """Retire the versions that go, each after a second decision about it."""
        return found.replace(dry_run=False, versions=tuple(map(self._retired, found.versions)))

    @cached_property
    def _judge(self) -> Judge:
        # Read once: an age that grows meanwhile retires nothing that the table does not have.
        return Judge(
            rules=self.rules,
            bucket=self.folder.bucket,
            prefix=self.folder.prefix.rstrip("/"),
            now_s=names.mlflow_now_s(self.rest),
            before_ms=self.rules.before_ms,
        )

    def _fates(self) -> Iterator[Fate]:
        versions: dict[str, list[ModelVersionEntry]] = {}
        # A wrong rule is refused also where no version depends on it.
        judge, models = self._judge, self.rest.registered_models()
        for row in self.rest.all_versions():
            versions.setdefault(row["name"], []).append(ModelVersionEntry.from_json(row))
        for model in sorted(models, key=lambda one: one.name):
            if self.rules.models and not any(fnmatchcase(model.name, pattern) for pattern in self.rules.models):
                continue
            own = sorted(versions.get(model.name, []), key=lambda one: one.version, reverse=True)
            begun = journal.read(model.tags)
            # Most registered models are those of other programs.
            if begun or any(tags.VERSION_SHA256 in one.tags for one in own):
                yield from self._fates_of(judge, model, own, begun)

    @staticmethod
    def _fates_of(
        judge: Judge, model: RegisteredModel, versions: Sequence[ModelVersionEntry], begun: dict[int, Begun]
    ) -> Iterator[Fate]:
        for one in judge.fates(model, versions):
            yield one.replace(is_begun=one.version in begun)
        existing = {one.version for one in versions}
        for version, entry in sorted(begun.items()):
            if version not in existing:
                yield Fate(
                    model=model.name,
                    version=version,
                    run_id=entry.run_id,
                    sha256=entry.sha256,
                    precision=entry.precision,
                    source=entry.source,
                    retires=True,
                    reason="its retirement was begun and not ended",
                    is_begun=True,
                )

    def _allowed(self, fate: Fate) -> Fate:
        """Return the decision, changed if a release needs the version or the objects are not those of this server."""
        if not fate.retires or fate.is_deleted:
            return fate
        stays = self._release_in_progress(fate) or self._foreign_objects(fate)
        return fate.replace(retires=False, reason=stays) if stays else fate

    def _release_in_progress(self, fate: Fate) -> str:
        run = names.training_run(self.rest, fate.run_id)
        return names.in_progress(run, self.is_active) if run else ""

    def _foreign_objects(self, fate: Fate) -> str:
        """Return the reason why the objects may belong to another MLflow server, such as the original of a copy."""
        server = server_name(self.rest.server)
        for place, paths in self._contents(fate):
            if paths and (writer := stored_objects.writer(place, paths)) != server:
                return f"its objects were written for {writer or 'an unknown server'}"
        return ""

    def _sizes(self) -> dict[str, StoredFolder]:
        found: dict[str, StoredFolder] = {}
        for path, item, now in stored_objects.objects(self.folder):
            if parts := ARTIFACT.fullmatch(path):
                found.setdefault(f"{self.folder.uri}/{parts[1]}", StoredFolder.of()).add(path, item, now)
        return found

    def _retired(self, fate: Fate) -> Fate:
        try:
            if not fate.retires:
                if fate.is_begun:
                    journal.remove(self.rest, fate.model, fate.version)
                return fate
            begun, stays, note = self._begun(fate), "", ""
            if not fate.is_deleted:
                stays = self._delete_version(fate, begun)
            if not stays:
                stays, note = self._end(fate, begun)
        except ReleaseError as failure:
            stays, note = str(failure), ""
        return fate.replace(retired=not stays, stays=stays, note=note)

    def _begun(self, fate: Fate) -> Begun:
        """Return the entry of the journal: a new one, or that of a retirement that has not ended."""
        if not fate.is_deleted:
            return self.reason.begun(fate)
        found = journal.read(self.rest.registered_model(fate.model).tags).get(fate.version)
        if found is None:
            raise Transient(
                f"The retirement of version {fate.version} of '{fate.model}'",
                "was ended by another one",
                "List the versions again.",
            )
        return found

    def _delete_version(self, fate: Fate, begun: Begun) -> str:
        """Decide again under the lock of the model, and delete the version. Return the reason if it stays."""
        with promotion_lock(self.hook, fate.model, self.reason.holder or uuid.uuid4().hex) as lock:
            versions, model = self.rest.model_versions(fate.model), self.rest.registered_model(fate.model)
            decided = {one.version: one for one in self._judge.fates(model, versions)}
            now = decided.get(fate.version)
            if now is None or now.source != fate.source:
                return "it is another version now" if now else "it was deleted by another program"
            if not (now := self._allowed(now)).retires:
                return f"{now.reason} now"
            journal.write(self.rest, fate.model, fate.version, begun)
            lock.require()
            # MLflow cannot delete on a condition: this check is one request before.
            if fate.version in self.rest.registered_model(fate.model).aliases.values():
                journal.remove(self.rest, fate.model, fate.version)
                return "it has an alias now"
            self.rest.call("DELETE", "model-versions/delete", {"name": fate.model, "version": str(fate.version)})
        log.info("Version %d of '%s' is deleted.", fate.version, fate.model)
        return ""

    def _end(self, fate: Fate, begun: Begun) -> tuple[str, str]:
        """Record the retirement on the training run and delete the objects.

        :return: the reason if objects stay that no version names, and a note.
        """
        if self._version_exists(fate):
            journal.remove(self.rest, fate.model, fate.version)
            return "the version is there: the next retirement decides about it", ""
        if not is_release_folder(
            begun.source, self.folder.bucket, self.folder.prefix.rstrip("/"), fate.model, begun.run_id, begun.sha256
        ):
            return "its objects are not in the folder of the releases", ""
        note = run_record.record(self.rest, fate.model, fate.version, begun)
        stays, kept = self._delete_objects(fate)
        if not stays:
            journal.remove(self.rest, fate.model, fate.version)
        return stays, "; ".join(filter(None, (note, kept)))

    def _version_exists(self, fate: Fate) -> bool:
        try:
            self.rest.model_version(fate.model, fate.version)
        except TrackingRefused as refusal:
            if refusal.code != "not_found":
                raise
            return False
        return True

    def _delete_objects(self, fate: Fate) -> tuple[str, str]:
        """Delete the objects that no version names.

        :return: the reason if unnamed objects stay, and a note about named ones.
        """
        named = Names.read(self.rest)
        (artifact, paths), (layouts, layout_paths) = self._contents(fate)
        if named.have(artifact.uri):
            return "", "its objects stay: another version names them"
        # After the versions: a release that has ended in between is named by its training run.
        run = names.training_run(self.rest, fate.run_id)
        # Nothing is released from a deleted run, and its record cannot be changed.
        if run and not run.deleted and (needed := names.run_needs(run, artifact.uri, self.is_active)):
            return needed, ""
        if foreign := self._foreign_objects(fate):
            return foreign, ""
        s3.remove(artifact, paths)
        if named.have(layouts.uri):
            return "", "its layouts stay: another version names them"
        s3.remove(layouts, layout_paths)
        return "", ""

    def _contents(self, fate: Fate) -> Iterator[tuple[s3.S3Folder, list[str]]]:
        """Yield the folders of the artifact and of its layouts, with the paths of their objects."""
        at = self._at(fate)
        for place in (at, layouts_folder(at)):
            yield place, stored_objects.folder_now(place).paths

    def _at(self, fate: Fate) -> s3.S3Folder:
        path = fate.source.rstrip("/").removeprefix(f"s3://{self.folder.bucket}/")
        return s3.S3Folder(hook=self.folder.hook, bucket=self.folder.bucket, prefix=f"{path}/", rerun=None)


def retire(
    *,
    bucket: str,
    prefix: str,
    mlflow_conn_id: str,
    s3_conn_id: str,
    rules: RetirementRules,
    reason: Reason,
    dry_run: Any,
    dag_state: Callable[[str, str], State],
) -> Retirement:
    """Retire the versions of one folder of releases.

    :param bucket: the bucket of the releases; `prefix` is the folder in it, empty for the root.
    :param dry_run: True to delete nothing.
    :param dag_state: returns the state of a DAG run, from the ids of DAG and DAG run.
    :raises Refused: for a wrong parameter; likewise `Transient`.
    """
    if not isinstance(dry_run, bool):
        raise ParameterRefused(
            "The parameter 'dry_run'", f"is {dry_run!r:.80}", "Give true or false.", code="wrong_parameter"
        )
    uri = "/".join(filter(None, (f"s3://{validation.validate_bucket(bucket)}", validation.validate_prefix(prefix))))
    folder = s3.folder_at(s3_conn_id, uri, rerun=None)
    s3.require_bucket(folder)
    hook = MlflowHook(mlflow_conn_id)
    with MlflowRest(hook.server) as rest:
        retirer = Retirer(
            hook=hook,
            rest=rest,
            folder=folder,
            rules=rules,
            reason=reason,
            is_active=lambda dag_id, dag_run_id: dag_state(dag_id, dag_run_id) is State.ACTIVE,
        )
        return retirer.run(dry_run=dry_run)
