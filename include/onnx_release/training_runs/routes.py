"""Routes of training runs: the release DAG and the parameters for the runs of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from onnx_release.records.base import Record
from onnx_release.training_runs.queries import matches
from onnx_release.training_runs.records import Experiment


class Route(Record):
    """One route: the runs of the experiments that match the pattern go to the DAG, with these parameters."""

    experiment: str
    dag_id: str
    params: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Routes:
    """Routes in order. The first one that matches an experiment counts."""

    routes: tuple[Route, ...]

    def of(self, experiment: Experiment | None) -> Route | None:
        """Return the first route that matches the experiment."""
        if experiment is None:
            return None
        return next((route for route in self.routes if matches(route.experiment, experiment)), None)

    @property
    def patterns(self) -> list[str]:
        """The patterns in order."""
        return [route.experiment for route in self.routes]
