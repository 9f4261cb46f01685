"""Decisions about training runs: release, wait, skip or refuse. Nothing is started here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from typing import Any, Literal

from pydantic import Field

from airflow_onnx import airflow_urls, dag_runs, params, validation
from airflow_onnx.dag_runs import State
from airflow_onnx.hooks.mlflow_records import Experiment, TrainingRun
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.tracking import model_name, pickle_permission, trained_models, weight_files
from airflow_onnx.tracking.trained_models import FoundModel
from airflow_onnx.watch import reasons
from airflow_onnx.watch.queries import Scope, TimeSpan
from airflow_onnx.watch.routes import Route, Routes
from onnx_release.errors import Refused, shorten, without_folders
from onnx_release.records.artifact import Precision
from onnx_release.records.base import Record
from onnx_release.training_runs import tags

HOUR_MS = 3_600_000
_REASON_CHARACTERS = 200
# The codes for runs that have no PyTorch model, as most runs of other kinds do.
_NO_MODEL = ("no_pytorch_model", "model_files_gone")

Action = Literal["release", "wait", "skip", "refuse"]
# The action, the code of its reason, and the reason.
_Outcome = tuple[Action, str, str]


class Decision(Record):
    """The decision about one training run.

    `action`: ``release`` it; ``wait`` for a release in progress; ``skip`` a run without anything to do or with an
    earlier attempt; ``refuse`` a run that cannot be released. `reasons.meaning` explains `reason_code`. `refusal` has
    the parts of its refusal, and `is_recorded` is True if the run has the tags of the same refusal. `ended_at` is in
    UTC, by the clock of the training's machine. `model_name` is the registered model, empty without a name;
    `model_name_given` is False for a name made of experiment and model. `dag_id` is the release DAG, empty for a run
    without a route. `conf` has the parameters of the release.
    """

    training_run_id: str
    run_name: str
    experiment: str
    ended_at: str
    action: Action
    reason: str
    reason_code: str
    refusal: dict[str, str] | None = None
    is_recorded: bool = False
    model_name: str
    model_name_given: bool
    dag_id: str
    dag_run_id: str
    # Not in the summary: the parameters of a route would stand there once for each run.
    conf: dict[str, Any] = Field(default_factory=dict, exclude=True)


@dataclass(kw_only=True)
class Decider:
    """Decisions about the training runs of a scope.

    :param dag_state: returns the state of a DAG run, from the ids of DAG and DAG run.
    """

    rest: MlflowRest
    scope: Scope
    routes: Routes
    dag_state: Callable[[str, str], State]

    @cached_property
    def _all_experiments(self) -> list[Experiment]:
        return self.rest.experiments()

    @cached_property
    def experiments(self) -> dict[str, Experiment]:
        """The watched experiments of MLflow by id."""
        return self.scope.watched(self._all_experiments)

    @cached_property
    def released_experiments(self) -> dict[str, Experiment]:
        """The watched experiments that have a route, by id."""
        return self.scope.released(self._all_experiments)

    @property
    def unrouted(self) -> list[str]:
        """The names of the watched experiments without a route."""
        return sorted(one.name for key, one in self.experiments.items() if key not in self.released_experiments)

    def new_runs(self, lookback_h: float) -> Iterator[Decision]:
        """Yield a decision for each finished run that was not handled yet, oldest first."""
        query = self.scope.new_runs(list(self.released_experiments), hours_ago_ms(lookback_h))
        # All pages first: a run that the caller handles leaves the result of the search, and the pages would shift.
        for run in list(self.rest.runs(query)):
            yield self.decide(run)

    def runs_between(self, span: TimeSpan, *, newest_first: bool = False) -> Iterator[Decision]:
        """Yield a decision for each run that ended in the range, in the order of their ends."""
        for run in self.rest.runs(self.scope.runs_between(list(self.experiments), span, newest_first=newest_first)):
            yield self.decide(run)

    def run(self, training_run_id: str) -> Decision:
        """Return the decision about one run, read from MLflow now.

        :raises TrackingRefused: if the run does not exist.
        """
        return self.decide(self.rest.run(validation.validate_run_id(training_run_id)))

    def decide(self, run: TrainingRun) -> Decision:
        """Return the decision about a run. A run that cannot be checked is refused."""
        experiment = self.experiments.get(run.experiment_id)
        route = self.routes.of(experiment)
        # Both a name and a decision need the model, which costs requests: at most one search for each run.
        found = cache(lambda: self._find_model(run, route))
        name, is_given = "", False
        refusal: Refused | None = None
        try:
            ended = self._by_state(run)
            if given := self._given_name(run, experiment, route):
                name, is_given = given, True
            elif route and not ended and experiment:
                name = self._earlier_name(run) or model_name.derived_name(
                    experiment.name, found().name or model_name.FILE_NAME
                )
            action, code, reason = ended or self._action(run, name, route, found)
        except Refused as error:
            code = error.code
            if code in _NO_MODEL:
                action, reason = "skip", f"the run {error.problem}"
            else:
                action, reason, refusal = "refuse", str(error), error
        return Decision(
            training_run_id=run.run_id,
            run_name=run.name,
            experiment=experiment.name if experiment else run.experiment_id,
            ended_at=datetime.fromtimestamp(run.ended_at_ms / 1000, UTC).isoformat(timespec="seconds"),
            action=action,
            reason=without_folders(reason),
            reason_code=code,
            refusal=refusal.to_dict() if refusal else None,
            is_recorded=refusal is not None and _is_recorded(run, refusal),
            model_name=name,
            model_name_given=is_given,
            dag_id=route.dag_id if route else "",
            dag_run_id=dag_runs.release_dag_run_id(run.run_id),
            conf=_conf(run, route, name),
        )

    def release_state(self, run: TrainingRun) -> State:
        """Return the state of the DAG run that releases the run by its route."""
        route = self.routes.of(self.experiments.get(run.experiment_id))
        return self.dag_state(route.dag_id, dag_runs.release_dag_run_id(run.run_id)) if route else State.ABSENT

    def _given_name(self, run: TrainingRun, experiment: Experiment | None, route: Route | None) -> str | None:
        of_experiment = experiment.tags.get(tags.MODEL_NAME) if experiment else None
        of_route = str(route.params.get("model_name") or "") if route else ""
        return model_name.given_name(run.tags.get(tags.MODEL_NAME), of_experiment, of_route)

    @staticmethod
    def _earlier_name(run: TrainingRun) -> str:
        """Return the name of an earlier release, which a release DAG may have given it. The tag is not trusted."""
        name = run.tags.get(tags.REGISTERED_MODEL, "")
        return validation.validate_model_name(name) if name else ""

    @staticmethod
    def _by_state(run: TrainingRun) -> _Outcome | None:
        if run.deleted:
            return "skip", reasons.DELETED, "the run was deleted"
        if run.unfinished:
            return "skip", reasons.STILL_RUNNING, "the run is still running"
        if run.status != "FINISHED":
            return "skip", reasons.NOT_FINISHED, f"the run ended as {run.status}"
        return None

    def _action(self, run: TrainingRun, name: str, route: Route | None, found: Callable[[], FoundModel]) -> _Outcome:
        if route is None:
            return "skip", reasons.NOT_ROUTED, "no route matches its experiment"
        if name and (version := self._released_version(run, name, route.params)):
            return "skip", reasons.RELEASED_BEFORE, f"released as version {version} of '{name}'"
        if tried := self._by_dag_runs(run, route.dag_id):
            return tried
        self._refuse_missing(run, found(), route.params)
        return "release", reasons.FINISHED, "finished, with a PyTorch model"

    def _released_version(self, run: TrainingRun, name: str, params: Mapping[str, Any]) -> str | None:
        precisions = params.get("tune_precisions") if params.get("tune") else None
        # A release that may ship int8 only ends in an int8 version. Otherwise an int8 version is not the release.
        shipped = set(map(str, precisions)) if isinstance(precisions, list) else {str(Precision.EXACT)}
        for version, found in self.rest.versions(name, run.run_id).items():
            precision = found.get(tags.VERSION_PRECISION, str(Precision.EXACT))
            if tags.VERSION_SHA256 in found and precision in shipped:
                return version
        return None

    def _by_dag_runs(self, run: TrainingRun, dag_id: str) -> _Outcome | None:
        own = (dag_id, dag_runs.release_dag_run_id(run.run_id))
        # A person may have released the run by another DAG.
        other_dag_id = airflow_urls.dag_id_of(run.tags.get(tags.DAG_RUN_URL, "")) or dag_id
        other = (other_dag_id, run.tags.get(tags.DAG_RUN_ID, ""))
        states = {ids: self.dag_state(*ids) for ids in dict.fromkeys([own, other]) if ids[1]}
        for (_, dag_run_id), state in states.items():
            if state is State.ACTIVE:
                return "wait", reasons.IN_PROGRESS, f"its release is in progress as DAG run {dag_run_id}"
        status = run.tags.get(tags.STATUS, "")
        # A refusal by the watch has no DAG run, and a setting may have changed since.
        if states[own] is State.ABSENT and not (other[1] and status == "refused"):
            return None
        action = f"Trigger {dag_id} manually."
        if states[own] is not State.ABSENT:
            action = f"Clear DAG run {own[1]}, or trigger {dag_id} manually."
        text = f"tried before: {status or 'without a recorded outcome'}. {action}"
        if earlier := run.tags.get(tags.REASON):
            text += f" The earlier reason: {shorten(earlier, _REASON_CHARACTERS)}"
        return "skip", reasons.tried_before(run.tags.get(tags.REASON_CODE, ""), status), text

    def _find_model(self, run: TrainingRun, route: Route | None) -> FoundModel:
        return trained_models.find(self.rest, run, route.params.get("logged_model_name") if route else None)

    def _refuse_missing(self, run: TrainingRun, found: FoundModel, given: Mapping[str, Any]) -> None:
        """Refuse a model that the release would refuse for a missing setting, parameter or tag."""
        # Imported here because the package of the core's module is not needed for the other decisions.
        from onnx_release.trained import refusals

        experiment = self.experiments.get(run.experiment_id)
        name = experiment.name if experiment else ""
        if found.kind == "pickle" and not pickle_permission.allowed_in(run.experiment_id, name):
            raise refusals.pickle_not_allowed(f"The model of training run {run.run_id}", may_be_script=True)
        if found.kind != "file":
            return
        subject = f"The model file {found.uri.rpartition('/')[2]}"
        if not (given.get("input_spec") or params.value(run.tags.get(tags.INPUT_SPEC))):
            raise refusals.no_input_spec(subject)
        if weight_files.is_weights(found.uri) and not (given.get("factory") or run.tags.get(tags.FACTORY)):
            raise refusals.no_factory(subject)


def _conf(run: TrainingRun, route: Route | None, name: str) -> dict[str, Any]:
    """Return the parameters of the run's release.

    :param name: the name of the registered model. It replaces only that of the route, which a tag precedes. Otherwise
        the release finds the name: its DAG may have one.
    """
    if route is None:
        return {}
    given = {"model_name": name} if name and route.params.get("model_name") else {}
    return {**route.params, "training_run_id": run.run_id, **given}


def _is_recorded(run: TrainingRun, refusal: Refused) -> bool:
    expected = tags.shortened({tags.STATUS: "refused", tags.REASON: str(refusal), tags.REASON_CODE: refusal.code})
    return all(run.tags.get(name) == text for name, text in expected.items())


def hours_ago_ms(hours: float) -> int:
    """Return the time so many hours ago, in milliseconds since 1970."""
    return int(time.time() * 1000 - hours * HOUR_MS)
