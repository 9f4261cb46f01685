"""Which runs MLflow is asked for: those that ended lately and nobody has looked at, or all that ended in a range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_onnx.hooks.mlflow_rest import PAGE_SIZE, Experiment, RunQuery
from airflow_onnx.tracking import tags
from onnx_release.errors import Refused

# Set on a run once it has been decided what becomes of it; a look asks only for runs without it, so what a look costs
# follows the new runs and not the old ones.
WATCHED = tags.WATCHED
ALL = "*"
FILTER_MAX_CHARACTERS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which training runs a deployment releases.

    :param experiments: names or ids of experiments, or ``*`` for all.
    :param run_filter: more conditions in MLflow's filter language, for example ``tags.release = 'yes'``.
    """

    experiments: tuple[str, ...]
    run_filter: str = ""

    def __post_init__(self) -> None:
        if len(self.run_filter) > FILTER_MAX_CHARACTERS:
            raise Refused(
                "run filter", f"has {len(self.run_filter)} characters", f"Use at most {FILTER_MAX_CHARACTERS}."
            )

    def watched(self, experiments: Sequence[Experiment]) -> dict[str, Experiment]:
        """Return the watched ones of MLflow's experiments by id. A configured experiment may not exist yet."""
        names = set(self.experiments)
        return {
            experiment.experiment_id: experiment
            for experiment in experiments
            if ALL in names or names & {experiment.experiment_id, experiment.name}
        }

    def new_runs(self, experiment_ids: Sequence[str], since_ms: int, page_size: int = PAGE_SIZE) -> RunQuery:
        """Ask for finished runs that ended since then, by their own clock, and that nobody has looked at."""
        conditions = [
            "attributes.status = 'FINISHED'",
            f"attributes.end_time >= {since_ms}",
            f"tags.`{WATCHED}` IS NULL",
            *self._own(),
        ]
        return RunQuery(experiment_ids=experiment_ids, filter=" AND ".join(conditions), page_size=page_size)

    def runs_between(self, experiment_ids: Sequence[str], span: Span, *, newest_first: bool) -> RunQuery:
        """Ask for every run that ended in the span, whatever became of it, deleted ones too."""
        conditions = [
            f"attributes.end_time >= {span.begin_ms}",
            f"attributes.end_time < {span.end_ms}",
            *self._own(),
        ]
        return RunQuery(
            experiment_ids=experiment_ids,
            filter=" AND ".join(conditions),
            newest_first=newest_first,
            with_deleted=True,
        )

    def _own(self) -> list[str]:
        return [self.run_filter.strip()] if self.run_filter.strip() else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A range of time in milliseconds since 1970, its end left out."""

    begin_ms: int
    end_ms: int

    @classmethod
    def of(cls, begin: datetime, end: datetime) -> Span:
        """Return the range between two times with a time zone; raises `Refused` when it is empty."""
        if not begin < end:
            raise Refused(
                "range of time", f"{begin.isoformat()} is not before {end.isoformat()}", "Exchange or change the ends."
            )
        return cls(begin_ms=to_ms(begin), end_ms=to_ms(end))


def to_ms(moment: datetime) -> int:
    """Return a time with a time zone as milliseconds since 1970."""
    return int(moment.timestamp() * 1000)


def moment(text: str, name: str) -> datetime:
    """Read the time that a parameter names, in UTC where it names no zone; raises `Refused` for any other text."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise Refused(f"'{name}'", f"is {text!r:.80}, no time", "Give one like 2026-11-01T00:00:00+00:00.") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
