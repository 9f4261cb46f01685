"""Decisions about training runs: release, wait, skip or refuse. Nothing is started here.

`Decider` needs MLflow alone. The watch of Airflow adds the state of DAG runs and the settings of the deployment.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from itertools import islice
from typing import Any, Literal

from pydantic import Field

from onnx_release.errors import Refused
from onnx_release.records.artifact import Precision
from onnx_release.records.base import Record
from onnx_release.text import shorten, without_folders
from onnx_release.training_runs import reasons, refusals, tags, trained_models, weight_files
from onnx_release.training_runs.names import (
    FILE_NAME,
    derived_name,
    given_name,
    validate_model_name,
    validate_run_id,
)
from onnx_release.training_runs.queries import Scope, TimeSpan
from onnx_release.training_runs.records import Experiment, ModelVersionEntry, TrainingRun
from onnx_release.training_runs.routes import Route, Routes
from onnx_release.training_runs.server import RUNS_PER_SEARCH_MAX, RunServer
from onnx_release.training_runs.trained_models import FoundModel

HOUR_MS = 3_600_000
_REASON_CHARACTERS = 200
# More of them would only wait for each other in MLflow's server.
REQUESTS_AT_ONCE = 8
# The tag of a release that has not ended.
_IN_PROGRESS = ("triggered", "running", "waiting")
# The codes for runs that have no PyTorch model, as most runs of other kinds do.
_NO_MODEL = ("no_pytorch_model", "model_files_gone")

Action = Literal["release", "wait", "skip", "refuse"]
Outcome = tuple[Action, str, str]
"""Action, code of its reason, and reason."""


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
    """Decisions about the training runs of a scope, from MLflow alone.

    :param pickles_allowed: True if the pickles of every experiment may be released.
    """

    rest: RunServer
    scope: Scope
    routes: Routes
    pickles_allowed: bool = False
    # By name of the registered model and id of the training run.
    _versions: dict[tuple[str, str], list[ModelVersionEntry]] = field(default_factory=dict, init=False, repr=False)
    # By id.
    _models: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)

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
        yield from self.decide_all(list(self.rest.runs(query)))

    def runs_between(self, span: TimeSpan, *, newest_first: bool = False) -> Iterator[Decision]:
        """Yield a decision for each run that ended in the range, in the order of their ends."""
        query = self.scope.runs_between(list(self.experiments), span, newest_first=newest_first)
        yield from self.decide_all(self.rest.runs(query))

    def run(self, training_run_id: str) -> Decision:
        """Return the decision about one run, read from MLflow now.

        :raises TrackingRefused: if the run does not exist.
        """
        return self.decide(self.rest.run(validate_run_id(training_run_id)))

    def decide(self, run: TrainingRun) -> Decision:
        """Return the decision about a run. A run that cannot be checked is refused."""
        self.prepare([run])
        return self._decide(run)

    def decide_all(self, runs: Iterable[TrainingRun]) -> Iterator[Decision]:
        """Yield the decision about each run, in their order. Most of the time is that of requests, which overlap."""
        left = iter(runs)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            while some := list(islice(left, RUNS_PER_SEARCH_MAX)):
                self.prepare(some)
                yield from pool.map(self._decide, some)

    def prepare(self, runs: Sequence[TrainingRun]) -> None:
        """Read the facts about many runs that one request returns for all of them."""
        self._versions = {}
        self._models = trained_models.single_models(self.rest, [run for run in runs if not self._by_state(run)])
        for one in self.rest.versions([run.run_id for run in runs]):
            self._versions.setdefault((one.name, one.run_id), []).append(one)

    def _decide(self, run: TrainingRun) -> Decision:
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
                name = self._earlier_name(run) or derived_name(experiment.name, found().name or FILE_NAME)
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
            dag_run_id=self.dag_run_id(run),
            conf=_conf(run, route, name),
        )

    def dag_run_id(self, run: TrainingRun) -> str:
        """Return the id of the DAG run that releases a run; empty without Airflow."""
        return ""

    def allows_pickle(self, experiment_id: str, name: str) -> bool:
        """Return True if the pickles of an experiment may be released."""
        return self.pickles_allowed

    def earlier_attempt(self, run: TrainingRun, dag_id: str) -> Outcome | None:
        """Return the outcome of an earlier release by the tags of the run, None for a run without one."""
        if not run.tags.get(tags.DAG_RUN_ID):
            return None
        if run.tags.get(tags.STATUS) in _IN_PROGRESS:
            return (
                "wait",
                reasons.IN_PROGRESS,
                f"its release is in progress as DAG run {run.tags[tags.DAG_RUN_ID]:.250}",
            )
        return tried_before(run, "Release it manually.")

    def _given_name(self, run: TrainingRun, experiment: Experiment | None, route: Route | None) -> str | None:
        of_experiment = experiment.tags.get(tags.MODEL_NAME) if experiment else None
        of_route = str(route.params.get("model_name") or "") if route else ""
        return given_name(run.tags.get(tags.MODEL_NAME), of_experiment, of_route)

    @staticmethod
    def _earlier_name(run: TrainingRun) -> str:
        """Return the name of an earlier release, which a release DAG may have given it. The tag is not trusted."""
        name = run.tags.get(tags.REGISTERED_MODEL, "")
        return validate_model_name(name) if name else ""

    @staticmethod
    def _by_state(run: TrainingRun) -> Outcome | None:
        if run.deleted:
            return "skip", reasons.DELETED, "the run was deleted"
        if run.unfinished:
            return "skip", reasons.STILL_RUNNING, "the run is still running"
        if run.status != "FINISHED":
            return "skip", reasons.NOT_FINISHED, f"the run ended as {run.status}"
        return None

    def _action(self, run: TrainingRun, name: str, route: Route | None, found: Callable[[], FoundModel]) -> Outcome:
        if route is None:
            return "skip", reasons.NOT_ROUTED, "no route matches its experiment"
        if name and (version := self._released_version(run, name, route.params)):
            return "skip", reasons.RELEASED_BEFORE, f"released as version {version} of '{name}'"
        tried = self.earlier_attempt(run, route.dag_id)
        if retired := self._retired_version(run, route.params):
            # A person may have started a new release.
            return tried if tried and tried[0] == "wait" else ("skip", reasons.RETIRED, retired)
        if tried:
            return tried
        self._refuse_missing(run, found(), route.params)
        return "release", reasons.FINISHED, "finished, with a PyTorch model"

    def _released_version(self, run: TrainingRun, name: str, params: Mapping[str, Any]) -> int | None:
        shipped = _shipped(params)
        for one in self._versions.get((name, run.run_id), ()):
            precision = one.tags.get(tags.VERSION_PRECISION, str(Precision.EXACT))
            if tags.VERSION_SHA256 in one.tags and precision in shipped:
                return one.version
        return None

    @staticmethod
    def _retired_version(run: TrainingRun, params: Mapping[str, Any]) -> str:
        """Return the record of a retirement of the run's version. Empty without one."""
        named = (
            tags.RETIRED if one == Precision.EXACT else tags.of_precision(tags.RETIRED, one) for one in _shipped(params)
        )
        found = next((text for name in named if (text := run.tags.get(name))), "")
        return f"its {shorten(found, _REASON_CHARACTERS)}. To release it again, trigger its release" if found else ""

    def _find_model(self, run: TrainingRun, route: Route | None) -> FoundModel:
        name = route.params.get("logged_model_name") if route else None
        return trained_models.find(self.rest, run, name, known=self._models)

    def _refuse_missing(self, run: TrainingRun, found: FoundModel, given: Mapping[str, Any]) -> None:
        """Refuse a model that the release would refuse for a missing setting, parameter or tag."""
        # Imported here because the package of the core's module is not needed for the other decisions.

        experiment = self.experiments.get(run.experiment_id)
        name = experiment.name if experiment else ""
        if found.kind == "pickle" and not self.allows_pickle(run.experiment_id, name):
            raise refusals.pickle_not_allowed(f"The model of training run {run.run_id}", may_be_script=True)
        if found.kind != "file":
            return
        subject = f"The model file {found.uri.rpartition('/')[2]}"
        if not (given.get("input_spec") or _is_given(run.tags.get(tags.INPUT_SPEC))):
            raise refusals.no_input_spec(subject)
        if weight_files.is_weights(found.uri) and not (given.get("factory") or run.tags.get(tags.FACTORY)):
            raise refusals.no_factory(subject)


def tried_before(run: TrainingRun, action: str) -> Outcome:
    """Return the outcome for a run with an earlier attempt, from its tags.

    :param action: the way to release it, as a sentence.
    """
    status = run.tags.get(tags.STATUS, "")
    text = f"tried before: {status or 'without a recorded outcome'}. {action}"
    if earlier := run.tags.get(tags.REASON):
        text += f" The earlier reason: {shorten(earlier, _REASON_CHARACTERS)}"
    return "skip", reasons.tried_before(run.tags.get(tags.REASON_CODE, ""), status), text


def _shipped(params: Mapping[str, Any]) -> set[str]:
    """Return the precisions with which a release by these parameters may end.

    A release that may ship int8 only ends in an int8 version. Otherwise an int8 version is not the release.
    """
    precisions = params.get("tune_precisions") if params.get("tune") else None
    return set(map(str, precisions)) if isinstance(precisions, list) else {str(Precision.EXACT)}


def _is_given(text: str | None) -> bool:
    """Return True for a tag with a value. An empty list, as JSON, is none."""
    try:
        return bool(json.loads(text or "null"))
    except ValueError:
        return True


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
