"""Records of a retirement: the rules, and the decision about each version."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field

from airflow_onnx import defaults
from airflow_onnx.leftovers.findings import ROWS_MAX
from onnx_release.records.base import Record
from onnx_release.training_runs.queries import parse_time


class RetirementRules(Record):
    """Conditions for the retirement of a version. All of them must be true.

    Attributes:
        min_age_days: The time in days since the version was made, and since an alias left it.
        made_before: The version was made before this time, in ISO 8601. Empty: no such condition.
        keep_newest: The newest versions of each model that stay.
        keep_previous: The versions that stay for a roll back of each alias: those that it was at before.
        models: Patterns of the names of models. Empty: all models.
    """

    min_age_days: float = Field(
        default=defaults.RETIRE_AGE_DAYS,
        ge=defaults.RETIRE_AGE_MIN_DAYS,
        le=defaults.RETIRE_AGE_MAX_DAYS,
        allow_inf_nan=False,
    )
    made_before: str = ""
    keep_newest: int = Field(default=defaults.RETIRE_KEEP_NEWEST, ge=0, le=defaults.RETIRE_KEEP_MAX)
    keep_previous: int = Field(default=defaults.RETIRE_KEEP_PREVIOUS, ge=0, le=defaults.RETIRE_KEEP_MAX)
    models: tuple[str, ...] = ()

    @property
    def before_ms(self) -> float:
        """The time of `made_before` in milliseconds since 1970.

        :raises TrainingRunRefused: ``not_a_time`` for another text.
        """
        if not self.made_before:
            return math.inf
        return parse_time(self.made_before, "made_before").timestamp() * 1000


class Fate(Record):
    """The decision about one version.

    Attributes:
        model: The registered model.
        version: The number of the version.
        run_id: Its training run.
        sha256: The digest of its files.
        precision: Its precision, as in its tag.
        source: The folder of its objects.
        age_s: The time since it was made in s, by MLflow's clock. None for a version that is deleted already.
        size_bytes: The size of its objects, with the layouts of model servers.
        objects: Their number.
        retires: The version goes.
        reason: The reason why it goes or stays.
        is_begun: An earlier retirement of the version was begun and not ended.
        retired: The version and its objects are deleted.
        stays: The reason why something of it is still there although its retirement was requested.
        note: A fact about its objects or its record.
    """

    model: str
    version: int
    run_id: str = ""
    sha256: str = ""
    precision: str = ""
    source: str = ""
    age_s: float | None = None
    size_bytes: int = 0
    objects: int = 0
    retires: bool
    reason: str
    is_begun: bool = False
    retired: bool = False
    stays: str = ""
    note: str = ""

    @property
    def is_deleted(self) -> bool:
        """True for a version that an earlier retirement deleted, and whose objects may still be there."""
        return self.age_s is None


class Retirement(Record):
    """Result of a retirement.

    Attributes:
        place: The folder of the releases, as ``s3://bucket/prefix``.
        dry_run: Nothing was deleted, because the call did not ask for it.
        rules: The rules.
        versions: The versions that go, and then those that stay.
    """

    place: str
    dry_run: bool
    rules: RetirementRules
    versions: tuple[Fate, ...] = ()

    @property
    def going(self) -> list[Fate]:
        """The versions that go."""
        return [one for one in self.versions if one.retires]

    @property
    def left(self) -> int:
        """The number of versions that go and are still there, with their objects or without them."""
        return sum(not one.retired for one in self.going)

    def summary(self) -> dict[str, Any]:
        """Return the content for XCom: the totals, and the first rows."""
        rows, going = self.to_dict(), self.going
        totals = {
            "found": len(going),
            "retired": len(going) - self.left,
            "kept": len(self.versions) - len(going),
            "found_bytes": sum(one.size_bytes for one in going),
        }
        return rows | {"versions": rows["versions"][:ROWS_MAX], "totals": totals}
