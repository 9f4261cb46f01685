"""One look at MLflow: which of the watched runs there are, and what is to become of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from airflow_onnx import validation
from airflow_onnx.dag_runs import State
from airflow_onnx.hooks.mlflow_rest import Experiment, MlflowRest
from airflow_onnx.watch.decide import Defaults, Planned, Planner, release_wall_s
from airflow_onnx.watch.queries import Scope, Span
from airflow_onnx.watch.summary import Estimate

HOUR_MS = 3_600_000


@dataclass(kw_only=True)
class Look:
    """What a look needs to know: the server, the runs that are meant, and what their releases are started with."""

    rest: MlflowRest
    scope: Scope
    defaults: Defaults
    dag_state: Callable[[str], State]

    @cached_property
    def experiments(self) -> dict[str, Experiment]:
        """The watched experiments by id, as MLflow has them now."""
        return self.scope.watched(self.rest.experiments())

    @property
    def experiment_ids(self) -> list[str]:
        """Their ids."""
        return list(self.experiments)

    @cached_property
    def planner(self) -> Planner:
        """What decides about each run."""
        return Planner(self.rest, self.experiments, self.defaults, self.dag_state)

    def new_runs(self, lookback_h: float) -> Iterator[Planned]:
        """Yield the finished runs that nobody has decided about, the oldest first."""
        query = self.scope.new_runs(self.experiment_ids, hours_ago_ms(lookback_h))
        # Read to the end first: what is decided drops out of the search, and the pages would shift.
        for run in list(self.rest.runs(query)):
            yield self.planner.plan(run)

    def runs_between(self, span: Span, *, newest_first: bool = False) -> Iterator[Planned]:
        """Yield every run that ended in the span, by the order of their ends."""
        for run in self.rest.runs(self.scope.runs_between(self.experiment_ids, span, newest_first=newest_first)):
            yield self.planner.plan(run)

    def run(self, training_run_id: str) -> Planned:
        """Decide about one run anew."""
        return self.planner.plan(self.rest.run(validation.run_id(training_run_id)))

    def estimate(self, at_once: int) -> Estimate:
        """Return what the releases are reckoned to take."""
        seconds, basis = release_wall_s(self.rest, self.experiment_ids)
        return Estimate(release_wall_s=seconds, at_once=at_once, basis=basis)


def hours_ago_ms(hours: float) -> int:
    """Return the time so many hours ago, in milliseconds since 1970."""
    return int(time.time() * 1000 - hours * HOUR_MS)
