"""Searches for training runs in MLflow: new finished runs, or all runs that ended in a range of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from onnx_release.errors import TrainingRunRefused
from onnx_release.training_runs import tags
from onnx_release.training_runs.records import Experiment
from onnx_release.training_runs.server import PAGE_SIZE, RunQuery

FILTER_MAX_CHARACTERS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The training runs that a watch releases.

    :param experiments: patterns of experiments: see `matches`.
    :param run_filter: more conditions in MLflow's filter language, for example ``tags.release = 'yes'``.
    :param routed: the patterns of the watch's routes. A run of another experiment has no release.
    """

    experiments: tuple[str, ...]
    run_filter: str = ""
    routed: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if len(self.run_filter) > FILTER_MAX_CHARACTERS:
            raise TrainingRunRefused(
                "The run filter",
                f"has {len(self.run_filter)} characters",
                f"Use at most {FILTER_MAX_CHARACTERS}.",
                code="filter_too_long",
            )

    def watched(self, experiments: Sequence[Experiment]) -> dict[str, Experiment]:
        """Return the watched ones of MLflow's experiments by id. A configured experiment may not exist yet."""
        return {one.experiment_id: one for one in experiments if matches_any(self.experiments, one)}

    def released(self, experiments: Sequence[Experiment]) -> dict[str, Experiment]:
        """Return the watched experiments with a route.

        A search for new runs has only these: the runs of the others belong to another watch, and are not tagged.
        """
        watched = self.watched(experiments)
        return {key: one for key, one in watched.items() if matches_any(self.routed, one)}

    def new_runs(self, experiment_ids: Sequence[str], since_ms: int, page_size: int = PAGE_SIZE) -> RunQuery:
        """Return the query for finished runs without the tag ``watched`` that ended at or after `since_ms`.

        The tag keeps the result small: it grows with the new runs and not with the old ones.
        """
        conditions = (
            "attributes.status = 'FINISHED'",
            f"attributes.end_time >= {since_ms}",
            f"tags.`{tags.WATCHED}` IS NULL",
        )
        return RunQuery(experiment_ids=experiment_ids, filter=self._joined(conditions), page_size=page_size)

    def runs_between(self, experiment_ids: Sequence[str], span: TimeSpan, *, newest_first: bool) -> RunQuery:
        """Return the query for all runs that ended in the range, in any state and also deleted ones."""
        conditions = (f"attributes.end_time >= {span.begin_ms}", f"attributes.end_time < {span.end_ms}")
        return RunQuery(
            experiment_ids=experiment_ids,
            filter=self._joined(conditions),
            newest_first=newest_first,
            with_deleted=True,
        )

    def _joined(self, conditions: Sequence[str]) -> str:
        return " AND ".join((*conditions, self.run_filter.strip()) if self.run_filter.strip() else conditions)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSpan:
    """A range of time in milliseconds since 1970, without its end."""

    begin_ms: int
    end_ms: int

    @classmethod
    def between(cls, begin: datetime, end: datetime) -> TimeSpan:
        """Return the range between two times with a time zone.

        :raises TrainingRunRefused: if the range is empty.
        """
        if not begin < end:
            raise TrainingRunRefused(
                "The range of time",
                f"is empty: {begin.isoformat()} is not before {end.isoformat()}",
                "Exchange or change the ends.",
                code="empty_range",
            )
        return cls(begin_ms=int(begin.timestamp() * 1000), end_ms=int(end.timestamp() * 1000))


def matches(pattern: str, experiment: Experiment) -> bool:
    """Return True if the pattern is the name or the id of the experiment, or if its wildcards match the name.

    The wildcards are those of `fnmatch`, as in ``radio-*``. Unlike a regular expression, no pattern can take long.
    """
    return pattern in (experiment.name, experiment.experiment_id) or fnmatchcase(experiment.name, pattern)


def matches_any(patterns: Iterable[str], experiment: Experiment) -> bool:
    """Return True if one of the patterns matches."""
    return any(matches(pattern, experiment) for pattern in patterns)


def parse_time(text: str, parameter: str) -> datetime:
    """Return the time of a parameter, in UTC if the text has no time zone.

    :param text: a time in ISO 8601.
    :raises TrainingRunRefused: for any other text.
    """
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise TrainingRunRefused(
            f"The parameter '{parameter}'",
            f"is {text!r:.80}, which is not a time",
            "Give one like 2026-11-01T00:00:00+00:00.",
            code="not_a_time",
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
