"""Decisions of the watch: those of the core, with the state of DAG runs and the settings of the deployment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from airflow_onnx import airflow_urls, dag_runs
from airflow_onnx.dag_runs import State
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.tracking import pickle_permission
from onnx_release.training_runs import decide, reasons, tags
from onnx_release.training_runs.decide import Outcome, tried_before
from onnx_release.training_runs.records import TrainingRun


@dataclass(kw_only=True)
class Decider(decide.Decider):
    """Decisions about the training runs of a scope.

    :param dag_state: returns the state of a DAG run, from the ids of DAG and DAG run.
    :param absent: returns the ids without a DAG run, from the ids of a DAG and of DAG runs.
    """

    rest: MlflowRest
    dag_state: Callable[[str, str], State]
    absent: Callable[[str, Sequence[str]], Collection[str]]
    # Ids of DAG and DAG run.
    _absent: set[tuple[str, str]] = field(default_factory=set, init=False, repr=False)

    def prepare(self, runs: Sequence[TrainingRun]) -> None:
        """Read the facts about many runs that one request returns for all of them."""
        super().prepare(runs)
        ids: dict[str, list[str]] = {}
        for run in runs:
            if route := self.routes.of(self.experiments.get(run.experiment_id)):
                ids.setdefault(route.dag_id, []).append(self.dag_run_id(run))
        self._absent = {(dag_id, one) for dag_id, some in ids.items() for one in self.absent(dag_id, some)}

    def _state(self, dag_id: str, dag_run_id: str) -> State:
        return State.ABSENT if (dag_id, dag_run_id) in self._absent else self.dag_state(dag_id, dag_run_id)

    def dag_run_id(self, run: TrainingRun) -> str:
        """Return the id of the one DAG run that releases a run."""
        return dag_runs.release_dag_run_id(run.run_id)

    def allows_pickle(self, experiment_id: str, name: str) -> bool:
        """Return True if the deployment allows the pickles of an experiment."""
        return pickle_permission.allowed_in(experiment_id, name)

    def release_state(self, run: TrainingRun) -> State:
        """Return the state of the DAG run that releases the run by its route."""
        route = self.routes.of(self.experiments.get(run.experiment_id))
        return self.dag_state(route.dag_id, self.dag_run_id(run)) if route else State.ABSENT

    def earlier_attempt(self, run: TrainingRun, dag_id: str) -> Outcome | None:
        """Return the outcome of an earlier release by its DAG runs, None for a run without one."""
        own = (dag_id, self.dag_run_id(run))
        # A person may have released the run by another DAG.
        other_dag_id = airflow_urls.dag_id_of(run.tags.get(tags.DAG_RUN_URL, "")) or dag_id
        other = (other_dag_id, run.tags.get(tags.DAG_RUN_ID, ""))
        states = {ids: self._state(*ids) for ids in dict.fromkeys([own, other]) if ids[1]}
        for (_, dag_run_id), state in states.items():
            if state is State.ACTIVE:
                return "wait", reasons.IN_PROGRESS, f"its release is in progress as DAG run {dag_run_id}"
        # A refusal by the watch has no DAG run, and a setting may have changed since.
        if states[own] is State.ABSENT and not (other[1] and run.tags.get(tags.STATUS) == "refused"):
            return None
        action = f"Trigger {dag_id} manually."
        if states[own] is not State.ABSENT:
            action = f"Clear DAG run {own[1]}, or trigger {dag_id} manually."
        return tried_before(run, action)
