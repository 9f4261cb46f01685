"""Records of a garbage collection: the leftovers, and the places that stay although nothing names them."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from onnx_release.records.base import Record

# XCom is stored in Airflow's database. The log has a line for each row.
ROWS_MAX = 500


class Kind(StrEnum):
    """Kind of a leftover."""

    OBJECTS = "objects"
    CHECK = "check object"
    STAGED_CHECK = "staged check object"
    UPLOAD = "upload"
    STAGING = "staging"
    SCRATCH = "scratch"
    VERSION = "version"
    DUPLICATE = "duplicate version"


class Leftover(Record):
    """Something that a crash left behind.

    Attributes:
        kind: Its kind.
        place: Its address: a URI, a folder of this host, or a version of the registry.
        age_s: The time since its last change in s, by the clock of the store or server that has it. None on this host.
        changed_at_s: The time of its last change in s since 1970, by the same clock. None if it has no files.
        size_bytes: The size of all its files.
        objects: The number of its files.
        reason: The reason why it is a leftover.
        upload_id: The id of an upload in parts.
        removed: It was removed.
        stays: The reason why it was not removed although that was requested.
    """

    kind: Kind
    place: str
    age_s: float | None = None
    changed_at_s: float | None = None
    size_bytes: int = 0
    objects: int = 0
    reason: str
    upload_id: str = ""
    removed: bool = False
    stays: str = ""


class Kept(Record):
    """Old objects that no version names and that stay, with the reason."""

    place: str
    reason: str


class Findings(Record):
    """Result of a garbage collection.

    Attributes:
        place: The folder of the releases, as ``s3://bucket/prefix``.
        dry_run: Nothing was removed, because the call did not ask for it.
        grace_s: The age in s below which nothing is a leftover.
        leftovers: The leftovers.
        kept: Objects that look like leftovers and stay.
        notes: Parts of the search that were left out.
    """

    place: str
    dry_run: bool
    grace_s: float
    leftovers: tuple[Leftover, ...] = ()
    kept: tuple[Kept, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def left(self) -> int:
        """The number of leftovers that are still there."""
        return sum(not one.removed for one in self.leftovers)

    def summary(self) -> dict[str, Any]:
        """Return the content for XCom: the totals, and the first rows."""
        removed = [one for one in self.leftovers if one.removed]
        totals = {
            "found": len(self.leftovers),
            "removed": len(removed),
            "found_bytes": sum(one.size_bytes for one in self.leftovers),
            "removed_bytes": sum(one.size_bytes for one in removed),
        }
        rows = self.to_dict()
        return rows | {name: rows[name][:ROWS_MAX] for name in ("leftovers", "kept")} | {"totals": totals}
