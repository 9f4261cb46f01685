"""What is to become of each training run, and why: asked of MLflow and Airflow, before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from statistics import median
from typing import Any, Literal

from airflow_onnx import dag_runs, defaults, validation
from airflow_onnx.dag_runs import State
from airflow_onnx.deployment import settings
from airflow_onnx.hooks.mlflow_rest import Experiment, MlflowRest, RunQuery, TrainingRun
from airflow_onnx.tracking import tags
from airflow_onnx.watch.model_kind import kind_of_model
from onnx_release.errors import Refused
from onnx_release.records.base import Record

Action = Literal["release", "wait", "skip", "refuse"]
# Of how many former releases an estimate is made.
ESTIMATED_FROM = 50


class Planned(Record):
    """What would be done with one training run.

    `action`: ``release`` it; ``wait``, as a release of it goes on; ``skip`` it, as there is nothing to do or it was
    tried before; ``refuse`` it, as it cannot be released. `ended_at` is in UTC, by the training's clock.
    """

    training_run_id: str
    run_name: str
    experiment: str
    ended_at: str
    action: Action
    reason: str
    model_name: str
    dag_run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The registered model's name, and parameters of `release_onnx`, for runs that say nothing of their own."""

    model_name: str = defaults.MODEL_NAME
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Planner:
    """Decides about runs, one at a time.

    :param experiments: MLflow's experiments by id, as its API returns them.
    :param dag_state: tells what became of a DAG run of `release_onnx`.
    """

    rest: MlflowRest
    experiments: dict[str, Experiment]
    defaults: Defaults
    dag_state: Callable[[str], State]

    def plan(self, run: TrainingRun) -> Planned:
        """Return what is to be done with the run; a run that cannot be judged is refused, with the reason."""
        name, experiment = self._model_name(run), self.experiments.get(run.experiment_id)
        try:
            action, reason = self._decide(run, validation.model_name(name))
        except Refused as error:
            action, reason = "refuse", str(error)
        return Planned(
            training_run_id=run.run_id,
            run_name=run.name,
            experiment=experiment.name if experiment else run.experiment_id,
            ended_at=datetime.fromtimestamp(run.ended_at_ms / 1000, UTC).isoformat(timespec="seconds"),
            action=action,
            reason=reason,
            model_name=name,
            dag_run_id=dag_runs.release_id(run.run_id),
        )

    def _model_name(self, run: TrainingRun) -> str:
        """Return the name that the run, else its experiment, asks for by a tag; else the deployment's own."""
        experiment = self.experiments.get(run.experiment_id)
        by_experiment = experiment.tags.get(tags.MODEL_NAME) if experiment else None
        return run.tags.get(tags.MODEL_NAME) or by_experiment or self.defaults.model_name

    def _decide(self, run: TrainingRun, name: str) -> tuple[Action, str]:
        steps = (self._by_its_end, self._by_the_registry, self._by_its_releases, self._by_its_model)
        decided = (step(run, name) for step in steps)
        return next((decision for decision in decided if decision), ("release", "finished, with a PyTorch model"))

    def _by_its_end(self, run: TrainingRun, _: str) -> tuple[Action, str] | None:
        if run.deleted:
            return "skip", "the run was deleted"
        return None if run.status == "FINISHED" else ("skip", f"the run ended as {run.status}")

    def _by_the_registry(self, run: TrainingRun, name: str) -> tuple[Action, str] | None:
        for version, found in self.rest.versions(name, run.run_id).items():
            # A version of reduced precision, made by hand, is not the one that is still to come.
            if (
                tags.VERSION_SHA256 in found
                and found.get(tags.VERSION_PRECISION, validation.EXACT) in self._precisions()
            ):
                return "skip", f"released as version {version} of '{name}'"
        return None

    def _precisions(self) -> set[str]:
        """Return the precisions that the releases which are started here may have."""
        params = self.defaults.params
        asked = params.get("tune_precisions") if params.get("tune") else None
        return set(map(str, asked)) if isinstance(asked, list) else {validation.EXACT}

    def _by_its_releases(self, run: TrainingRun, _: str) -> tuple[Action, str] | None:
        own, other = dag_runs.release_id(run.run_id), run.tags.get(tags.DAG_RUN_ID, "")
        states = {dag_run_id: self.dag_state(dag_run_id) for dag_run_id in dict.fromkeys([own, other]) if dag_run_id}
        if alive := [dag_run_id for dag_run_id, state in states.items() if state is State.ALIVE]:
            return "wait", f"its release goes on as DAG run {alive[0]}"
        if states[own] is not State.ABSENT:
            return "skip", f"tried before: {_outcome(run)}; clear DAG run {own}, or trigger it by hand"
        if run.tags.get(tags.STATUS) == "refused":
            return "skip", f"refused before: {_outcome(run)}; trigger it by hand"
        return None

    def _by_its_model(self, run: TrainingRun, _: str) -> tuple[Action, str] | None:
        kind = kind_of_model(self.rest, run)
        if kind == "none":
            return "skip", "the run holds no PyTorch model"
        if kind == "gone":
            return "skip", "the model was logged, but its artifacts are gone"
        if kind == "pickle" and not settings.allow_pickle():
            # A TorchScript module has a pickle's name, and only its contents tell.
            return "refuse", "the model is a pickle, and [onnx_release] allow_pickle is not set (TorchScript: by hand)"
        if kind == "weights" and not self._has_factory(run):
            return "refuse", f"the run left weights alone, and nothing says what makes the model (tag {tags.FACTORY})"
        return None

    def _has_factory(self, run: TrainingRun) -> bool:
        return bool(run.tags.get(tags.FACTORY) or self.defaults.params.get("factory"))

    def conf(self, planned: Planned) -> dict[str, Any]:
        """Return the parameters that the run's release is started with."""
        return {
            **self.defaults.params,
            "training_run_id": planned.training_run_id,
            "model_name": planned.model_name,
        }


def _outcome(run: TrainingRun) -> str:
    status = run.tags.get(tags.STATUS, "no outcome on record")
    reason = run.tags.get(tags.REASON, "")
    return f"{status} ({reason[:200]})" if reason else status


def release_wall_s(rest: MlflowRest, experiment_ids: list[str]) -> tuple[float, str]:
    """Return how long a release takes, in seconds, and what that is made of: the latest releases, or an assumption."""
    query = RunQuery(
        experiment_ids=experiment_ids,
        filter=f"tags.`{tags.STATUS}` = 'released'",
        newest_first=True,
        page_size=ESTIMATED_FROM,
    )
    seconds = [number for run in islice(rest.runs(query), ESTIMATED_FROM) for number in _wall_s(run)]
    if not seconds:
        return defaults.RELEASE_ASSUMED_S, "assumed: no release is on record in these experiments"
    return median(seconds), f"the median of {len(seconds)} releases in these experiments"


def _wall_s(run: TrainingRun) -> Iterator[float]:
    text = run.tags.get(tags.WALL_S, "")
    if text.replace(".", "", 1).isdecimal():
        yield float(text)
