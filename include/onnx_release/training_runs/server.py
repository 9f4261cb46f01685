"""Calls of MLflow that the search for runs and models needs. Airflow's hook and the command line have a client each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from onnx_release.training_runs.names import validate_run_id
from onnx_release.training_runs.records import Experiment, ModelVersionEntry, TrainingRun

PAGE_SIZE = 200
# Their ids travel in the address of a request, which servers limit to about 8 kB.
RUNS_PER_SEARCH_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """A search for runs.

    :param experiment_ids: the experiments to search. Without any the result is empty.
    :param filter: conditions in MLflow's filter language.
    :param order_by: the order in MLflow's language, by default the end of the runs.
    """

    experiment_ids: Sequence[str]
    filter: str
    order_by: str = "attributes.end_time"
    newest_first: bool = False
    with_deleted: bool = False
    page_size: int = PAGE_SIZE


def versions_of_runs(run_ids: Sequence[str]) -> str:
    """Return the filter for the versions that were made from one of at most `RUNS_PER_SEARCH_MAX` runs.

    :raises Refused: if an id has another form than MLflow gives it.
    """
    return f"run_id IN ({', '.join(repr(validate_run_id(run_id)) for run_id in run_ids)})"


def models_of_run(run_id: str) -> str:
    """Return the filter for the logged models that the run made."""
    return f"source_run_id = '{validate_run_id(run_id)}'"


class RunServer(Protocol):
    """Client of one MLflow server. Calls raise `Refused` for an object that does not exist, and `Transient`."""

    def experiments(self) -> list[Experiment]:
        """Return all experiments that are not deleted."""

    def runs(self, query: RunQuery) -> Iterator[TrainingRun]:
        """Yield the runs."""

    def run(self, run_id: str) -> TrainingRun:
        """Return one run, deleted or not."""

    def versions(self, run_ids: Sequence[str]) -> Iterator[ModelVersionEntry]:
        """Yield the versions of all registered models that were made from one of the runs, in any order."""

    def run_files(self, run_id: str, path: str = "") -> list[dict[str, Any]]:
        """Return the entries of a folder of the run's artifacts, each with ``path`` and ``is_dir``."""

    def model_files(self, model_id: str, path: str = "") -> list[dict[str, Any]]:
        """Return the entries of a folder of a logged model."""

    def logged_models(self, experiment_ids: Sequence[str], condition: str) -> list[dict[str, Any]]:
        """Return the info of each logged model of the experiments that matches and that is not deleted."""

    def logged_model(self, model_id: str) -> dict[str, Any]:
        """Return the info of a logged model."""
