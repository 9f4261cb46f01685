"""Estimate of the duration of releases, from earlier ones."""

from __future__ import annotations

from itertools import islice
from math import ceil
from statistics import median

from onnx_release.records.base import Record
from onnx_release.training_runs import tags
from onnx_release.training_runs.server import RunQuery, RunServer

# An estimate uses at most this many earlier releases.
RELEASES_MAX = 50
# The assumed duration of one release, before the first one.
RELEASE_ASSUMED_S = 60.0


class Estimate(Record):
    """The duration of releases: `release_wall_s` for the work of one, `at_once` of them at the same time."""

    release_wall_s: float
    at_once: int
    basis: str

    def total_wall_s(self, releases: int) -> float:
        """Return the duration of so many releases. A single one takes as long as its work."""
        return self.release_wall_s * ceil(releases / self.at_once)


def estimate(rest: RunServer, experiment_ids: list[str], at_once: int) -> Estimate:
    """Return the estimate for releases in these experiments."""
    query = RunQuery(
        experiment_ids=experiment_ids,
        filter=f"tags.`{tags.STATUS}` = 'released'",
        newest_first=True,
        page_size=RELEASES_MAX,
    )
    texts = [run.tags.get(tags.WALL_S, "") for run in islice(rest.runs(query), RELEASES_MAX)]
    # A tag may have been changed to any text.
    seconds = [float(text) for text in texts if text.replace(".", "", 1).isdecimal()]
    if not seconds:
        basis = "assumed: these experiments have no release yet"
        return Estimate(release_wall_s=RELEASE_ASSUMED_S, at_once=at_once, basis=basis)
    count = f"the median of {len(seconds)} releases" if len(seconds) > 1 else "the duration of one release"
    return Estimate(release_wall_s=median(seconds), at_once=at_once, basis=f"{count} in these experiments")
