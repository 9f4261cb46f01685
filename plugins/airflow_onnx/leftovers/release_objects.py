"""Objects below the prefix of the releases that no version and no training run names.

The objects are listed first, and then MLflow is read. So a version that was made in between names its objects. Before
each removal MLflow is read once more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from airflow_onnx import defaults
from airflow_onnx.errors import LeftoversRefused, TrackingRefused
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.leftovers import names
from airflow_onnx.leftovers.findings import Kept, Kind, Leftover
from airflow_onnx.leftovers.names import IsActive, Names
from airflow_onnx.preflight.store import MARK
from airflow_onnx.storage import s3, stored_objects
from airflow_onnx.storage.object_metadata import server_name
from airflow_onnx.storage.s3 import S3Folder
from airflow_onnx.storage.stored_objects import StoredFolder
from onnx_release.training_runs import tags
from onnx_release.training_runs.names import MODEL_NAME, RUN_ID

# <model name>/<training run id>/<sha256 prefix>/, and the folder of the layouts of model servers beside it.
ARTIFACT = re.compile(
    rf"({MODEL_NAME.regexp.strip('^$')}/{RUN_ID.regexp.strip('^$')}/[0-9a-f]{{{defaults.SHA_PREFIX_LENGTH}}})(-serving)?/.+"
)
# In the root of the prefix, or in the folder of a training run.
CHECK = re.compile(
    rf"({MODEL_NAME.regexp.strip('^$')}/{RUN_ID.regexp.strip('^$')}/)?{MARK}-[0-9a-f]{{12}}\.txt(\.copy)?"
)


@dataclass(kw_only=True)
class ReleaseObjects:
    """The search for unnamed objects in the folder of the releases of one MLflow server.

    :param folder: the folder, ``s3://bucket/prefix``. Objects whose keys have another form than a release gives them
        are never touched.
    :param is_active: returns True for the DAG run of a release in progress.
    """

    rest: MlflowRest
    folder: S3Folder
    grace_s: float
    is_active: IsActive
    kept: list[Kept] = field(default_factory=list)

    def find(self) -> Iterator[Leftover]:
        """Yield a leftover for each artifact that nothing names, and for each object of a check.

        :raises LeftoversRefused: if MLflow is not the server whose releases are there, or its registry is empty.
        """
        folders, checks = self._listed()
        found = Names.read(self.rest)
        old = {path: one for path, one in folders.items() if one.age_s >= self.grace_s}
        unnamed = {path: one for path, one in old.items() if not found.have(self._at(path).uri)}
        leftovers = [one for path in sorted(unnamed) if (one := self._judged(path, unnamed[path], found))]
        named = any(found.have(self._at(path).uri) for path in folders)
        others = [one for one in self.kept if one.reason.startswith(_OTHER_SERVER)]
        if others and len(others) == len(unnamed) and not named:
            raise LeftoversRefused(
                f"The folder {self.folder.uri}",
                f"has only releases of another MLflow server, such as {others[0].place}: {others[0].reason}",
                f"Give the connection of that server. This is {self.rest.server.tracking_uri}.",
                code="other_tracking_server",
            )
        yield from leftovers
        for path, check in sorted(checks.items()):
            if check.age_s >= self.grace_s:
                yield self._leftover(Kind.CHECK, path, check, "a check did not remove it")

    def remove(self, leftover: Leftover) -> str:
        """Read MLflow again, then remove the objects of a leftover. Return the reason if they stay."""
        path = leftover.place.removeprefix(f"{self.folder.uri}/")
        if leftover.kind is Kind.CHECK:
            s3.remove(self.folder, [path])
            return ""
        run = names.training_run(self.rest, path.split("/")[1])
        if run is None:
            return "its training run is gone now"
        if reason := names.run_needs(run, leftover.place, self.is_active):
            return f"{reason} now"
        if Names.read(self.rest).have(leftover.place):
            return "a version names it now"
        at = self._at(path)
        places = (at, replace(at, prefix=f"{at.prefix.rstrip('/')}-serving/"))
        contents = [(place, stored_objects.folder_now(place)) for place in places]
        # Objects that a release puts again have a later time.
        if any(present.newest.timestamp() > (leftover.changed_at_s or 0.0) for _, present in contents):
            return "it was changed after the search"
        for place, present in contents:
            s3.remove(place, present.paths)
        return ""

    def _listed(self) -> tuple[dict[str, StoredFolder], dict[str, StoredFolder]]:
        folders: dict[str, StoredFolder] = {}
        checks: dict[str, StoredFolder] = {}
        for path, item, now in stored_objects.objects(self.folder):
            if parts := ARTIFACT.fullmatch(path):
                group, key = folders, parts[1]
            elif CHECK.fullmatch(path):
                group, key = checks, path
            else:
                continue
            group.setdefault(key, StoredFolder.of()).add(path, item, now)
        return folders, checks

    def _judged(self, path: str, one: StoredFolder, found: Names) -> Leftover | None:
        """Return the leftover, or None if the objects stay."""
        if reason := self._need(path, one, found):
            self.kept.append(Kept(place=self._at(path).uri, reason=reason))
            return None
        return self._leftover(Kind.OBJECTS, path, one, "no version and no training run names it")

    def _need(self, path: str, one: StoredFolder, found: Names) -> str:
        """Return the reason why unnamed objects stay. Empty if they do not."""
        uri, (model, run_id, _) = self._at(path).uri, path.split("/")
        writer = stored_objects.writer(self.folder, one.paths)
        if writer != server_name(self.rest.server):
            return f"{_OTHER_SERVER} {writer or 'an unknown server'}"
        run = names.training_run(self.rest, run_id)
        if run is None:
            return f"{_OTHER_SERVER} a server that has the training run {run_id}"
        if run.tags.get(tags.VERSION) and not found.released:
            raise LeftoversRefused(
                f"The registry of MLflow at {self.rest.server.tracking_uri}",
                f"has no version of a release, and the training run {run.run_id} was released as version "
                f"{run.tags[tags.VERSION]:.20}",
                "Check the registry's database, and that the account may read all registered models.",
                code="registry_empty",
            )
        self._require_readable(model)
        return names.run_needs(run, uri, self.is_active)

    def _require_readable(self, model: str) -> None:
        """Raise if the account may not read a registered model: the list of versions then lacks those of the model."""
        try:
            self.rest.registered_model(model)
        except TrackingRefused as refusal:
            if refusal.code != "not_found":
                raise

    def _leftover(self, kind: Kind, path: str, one: StoredFolder, reason: str) -> Leftover:
        return Leftover(
            kind=kind,
            place=self._at(path).uri,
            age_s=one.age_s,
            changed_at_s=one.newest.timestamp(),
            size_bytes=one.size_bytes,
            objects=len(one.paths),
            reason=reason,
        )

    def _at(self, path: str) -> S3Folder:
        return replace(self.folder, prefix=f"{self.folder.prefix}{path}/")


_OTHER_SERVER = "written for"
