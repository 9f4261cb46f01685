"""Garbage collection of one folder of releases: the search, and then the removal.

Everything is searched before anything is removed. An error of the search ends it, so that nothing is removed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import urlsplit

from airflow_onnx import defaults, validation
from airflow_onnx.dag_runs import State
from airflow_onnx.deployment import settings
from airflow_onnx.errors import LeftoversRefused
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.leftovers import uploads
from airflow_onnx.leftovers.duplicate_versions import DuplicateVersions
from airflow_onnx.leftovers.findings import Findings, Kind, Leftover
from airflow_onnx.leftovers.names import IsActive
from airflow_onnx.leftovers.pending_versions import PendingVersions
from airflow_onnx.leftovers.release_objects import ReleaseObjects
from airflow_onnx.leftovers.staged_checks import CHECK, StagedChecks
from airflow_onnx.leftovers.uploads import Uploads
from airflow_onnx.leftovers.work_folders import Scratch, WorkFolders
from airflow_onnx.storage import s3, staging
from airflow_onnx.storage.staging_s3 import staging_folder
from onnx_release.errors import ReleaseError

log = logging.getLogger(__name__)

HOUR_S = 3600.0


class Source(Protocol):
    """A search for leftovers of some kinds."""

    def find(self) -> Iterator[Leftover]:
        """Yield the leftovers. Change nothing."""

    def remove(self, leftover: Leftover) -> str:
        """Remove a leftover that `find` returned. Return the reason if it stays."""


@dataclass(frozen=True, kw_only=True)
class Collector:
    """The garbage collection of one folder of releases and of the deployment's staging folder.

    :param folder: the folder of the releases.
    :param checked_uri: the staging folder that the checks of the deployment use: `staging_uri` without the prefix of
        the releases.
    :param grace_s: the age in s from which something is a leftover.
    :param work_keep_s: the same for a work folder.
    :param is_active: returns True for the DAG run of a release in progress, whose objects stay.
    """

    rest: MlflowRest
    folder: s3.S3Folder
    staging_uri: str
    checked_uri: str
    grace_s: float
    is_active: IsActive
    work_keep_s: float = defaults.WORK_KEEP_S

    def run(self, *, dry_run: bool) -> Findings:
        """Search, and remove the leftovers unless it is a dry run.

        :raises Refused: if the search is incomplete; likewise `Transient`.
        """
        found = self.find()
        return found if dry_run else self.remove(found)

    def find(self) -> Findings:
        """Search for leftovers. Nothing is changed."""
        leftovers = [one for source in self._sources.values() for one in source.find()]
        return Findings(
            place=self.folder.uri,
            dry_run=True,
            grace_s=self.grace_s,
            leftovers=tuple(leftovers),
            kept=tuple(self._objects.kept),
            notes=(*self._uploads.notes, *self._staged_checks.notes, *self._work_folders.notes),
        )

    def remove(self, found: Findings) -> Findings:
        """Remove the leftovers of the search before, each after a second look at it."""
        return found.replace(dry_run=False, leftovers=tuple(map(self._removed, found.leftovers)))

    def _removed(self, leftover: Leftover) -> Leftover:
        source = self._objects if leftover.kind is Kind.CHECK else self._sources[leftover.kind]
        try:
            stays = source.remove(leftover)
        except ReleaseError as failure:
            stays = str(failure)
        return leftover.replace(removed=not stays, stays=stays)

    @cached_property
    def _sources(self) -> dict[Kind, Source]:
        return {
            Kind.OBJECTS: self._objects,
            Kind.UPLOAD: self._uploads,
            Kind.STAGING: self._work_folders,
            Kind.STAGED_CHECK: self._staged_checks,
            Kind.SCRATCH: Scratch(),
            Kind.VERSION: PendingVersions(rest=self.rest, folder_uri=self.folder.uri, grace_s=self.grace_s),
            Kind.DUPLICATE: DuplicateVersions(rest=self.rest, folder_uri=self.folder.uri, grace_s=self.grace_s),
        }

    @cached_property
    def _objects(self) -> ReleaseObjects:
        return ReleaseObjects(
            rest=self.rest, folder=self.folder, grace_s=self.grace_s, is_active=self.is_active
        )  # fmt: skip

    @cached_property
    def _uploads(self) -> Uploads:
        folders = [uploads.of_releases(self.folder)]
        if urlsplit(self.staging_uri).scheme == "s3":
            folders.append((staging_folder(self.staging_uri), [uploads.STAGED]))
        if self._staged_checks.folder is not None:
            folders.append((self._staged_checks.folder, [CHECK]))
        return Uploads(folders=folders, grace_s=self.grace_s)

    @cached_property
    def _staged_checks(self) -> StagedChecks:
        return StagedChecks(staging_uri=self.checked_uri, grace_s=self.grace_s)

    @cached_property
    def _work_folders(self) -> WorkFolders:
        keep_s = max(self.grace_s, self.work_keep_s)
        return WorkFolders(staging_uri=self.staging_uri, store=self.folder, keep_s=keep_s)


def collect(
    *,
    bucket: str,
    prefix: str,
    mlflow_conn_id: str,
    s3_conn_id: str,
    grace_h: Any,
    dry_run: Any,
    dag_state: Callable[[str, str], State],
) -> Findings:
    """Run the garbage collection of one folder of releases.

    :param bucket: the bucket of the releases; `prefix` is the folder in it, empty for the root.
    :param grace_h: the age in hours from which something is a leftover.
    :param dry_run: True to remove nothing.
    :param dag_state: returns the state of a DAG run, from the ids of DAG and DAG run.
    :raises LeftoversRefused: for a wrong parameter, or a search that is not safe.
    """
    if not isinstance(dry_run, bool):
        raise LeftoversRefused(
            "The parameter 'dry_run'", f"is {dry_run!r:.80}", "Give true or false.", code="wrong_dry_run"
        )
    grace_s = grace_seconds(grace_h)
    uri = "/".join(filter(None, (f"s3://{validation.validate_bucket(bucket)}", validation.validate_prefix(prefix))))
    folder = s3.folder_at(s3_conn_id, uri, rerun=None)
    s3.require_bucket(folder)
    with MlflowRest(MlflowHook(mlflow_conn_id).server) as rest:
        staging_uri = staging.staging_root_uri(settings.staging_uri(), prefix)
        collector = Collector(
            rest=rest,
            folder=folder,
            staging_uri=staging_uri,
            checked_uri=settings.staging_uri(),
            grace_s=grace_s,
            is_active=lambda dag_id, dag_run_id: dag_state(dag_id, dag_run_id) is State.ACTIVE,
        )
        return collector.run(dry_run=dry_run)


def grace_seconds(hours: Any) -> float:
    """Return the grace period in s.

    :raises LeftoversRefused: for another value than a number of hours in the allowed range.
    """
    is_number = isinstance(hours, int | float) and not isinstance(hours, bool) and math.isfinite(hours)
    if not is_number or not defaults.GRACE_MIN_H <= hours <= defaults.GRACE_MAX_H:
        raise LeftoversRefused(
            "The grace period",
            f"is {hours!r:.80}",
            f"Give a number of hours from {defaults.GRACE_MIN_H:g} to {defaults.GRACE_MAX_H:g}.",
            code="wrong_grace",
        )
    return HOUR_S * float(hours)
