"""Finds finished training runs and starts one release for each: those that have just ended, or those of a range."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseOperator

from airflow_onnx import dag_runs, defaults, params
from airflow_onnx.dag_runs import State
from airflow_onnx.errors import airflow_outcome
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.triggers.release_dag_runs import ReleaseDagRunsTrigger
from airflow_onnx.watch import summary
from airflow_onnx.watch.decide import Defaults, Planned
from airflow_onnx.watch.look import Look, hours_ago_ms
from airflow_onnx.watch.queries import Scope, Span, moment
from airflow_onnx.watch.start import NEW, OLD, Starter, new_releases_go_on
from onnx_release.errors import Refused
from onnx_release.records.base import Record

if TYPE_CHECKING:
    from airflow.sdk import Context

# While releases of new runs go on, a backfill asks this often whether they have ended.
STAND_BACK_S = 10.0
WAIT_MAX_S = 600.0


class Pace(Record):
    """In which order and how many at once, see `WatchTrainingOperator`."""

    order: Literal["oldest", "newest"] = "oldest"
    at_once: int = defaults.RELEASES_AT_ONCE
    lookback_h: float = defaults.WATCH_LOOKBACK_H

    def __post_init__(self) -> None:
        """Refuse a number of releases that is none."""
        if not 1 <= self.at_once <= defaults.RELEASES_AT_ONCE_MAX:
            raise Refused("at_once", f"is {self.at_once}", f"Give a number from 1 to {defaults.RELEASES_AT_ONCE_MAX}.")


class Backlog(Record):
    """How far the releases of a range are: ids of training runs. It is kept in Airflow's database between two steps."""

    begin_ms: int
    end_ms: int
    pending: tuple[str, ...]
    going_on: tuple[str, ...]
    started: int = 0

    @property
    def dag_run_ids(self) -> list[str]:
        """The releases that go on."""
        return [dag_runs.release_id(run_id) for run_id in self.going_on]


class WatchTrainingOperator(BaseOperator):
    """Starts a DAG run of `release_onnx` for each finished training run, and never two for one.

    A DAG run that the schedule or the bell started takes the runs that ended within the lookback and were not decided
    yet, starts their releases and ends. One that belongs to a backfill takes every run that ended in its data interval;
    one triggered by hand may name a range. These keep `at_once` releases going until all have ended, without holding a
    worker, and start none while the release of a new training run goes on.

    Returns the summary of `airflow_onnx.watch.summary.as_dict`; `plan_only` does only that.

    :param experiments: names or ids of MLflow's experiments, or ``*``.
    :param run_filter: more conditions, in MLflow's filter language.
    :param model_name: the registered model for runs that name none in their tag ``onnx_release.model_name``.
    :param release_params: more parameters of `release_onnx`, the same for each release.
    :param lookback_h: how far back new runs are looked for, in hours.
    :param since: begin of a range, ISO 8601 with a time zone (UTC if none is given); empty for no range.
    :param until: its end, left out; empty for now.
    :param order: ``oldest`` or ``newest`` first.
    :param at_once: releases of a range that go on side by side.
    """

    template_fields: Sequence[str] = (
        "experiments",
        "run_filter",
        "model_name",
        "release_params",
        "lookback_h",
        "since",
        "until",
        "order",
        "at_once",
        "plan_only",
        "mlflow_conn_id",
    )
    ui_color = "#fef9c3"

    def __init__(
        self,
        *,
        experiments: Any,
        run_filter: str = "",
        model_name: str = defaults.MODEL_NAME,
        release_params: Any = None,
        lookback_h: Any = defaults.WATCH_LOOKBACK_H,
        since: str = "",
        until: str = "",
        order: str = "oldest",
        at_once: Any = defaults.RELEASES_AT_ONCE,
        plan_only: Any = False,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.experiments = experiments
        self.run_filter = run_filter
        self.model_name = model_name
        self.release_params = release_params
        self.lookback_h = lookback_h
        self.since = since
        self.until = until
        self.order = order
        self.at_once = at_once
        self.plan_only = plan_only
        self.mlflow_conn_id = mlflow_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Look once; new runs are started at once, those of a range in turn."""
        with airflow_outcome(), self._looking() as look:
            span, pace = self._span(context), self._pace
            if params.value(self.plan_only):
                return self._plan(look, span, pace)
            if span is None:
                return self._release_new(look, pace)
            planned = self._planned(look, span, pace)
            self._refuse(look, planned)
            backlog = _backlog(span, planned)
        return self._go_on(backlog)

    def execute_complete(self, context: Context, event: dict[str, Any], backlog: dict[str, Any]) -> dict[str, Any]:
        """Go on with a range after some of its releases have ended."""
        return self._go_on(Backlog.from_dict(backlog))

    @contextmanager
    def _looking(self) -> Iterator[Look]:
        scope = Scope(
            experiments=tuple(str(item) for item in params.value(self.experiments) or ()),
            run_filter=self.run_filter,
        )
        if not scope.experiments:
            self.log.warning("No experiment is watched: set [onnx_release] watch_experiments, or the parameter.")
        defaults = Defaults(model_name=self.model_name, params=dict(params.value(self.release_params) or {}))
        with MlflowRest(MlflowHook(self.mlflow_conn_id).server) as rest:
            yield Look(rest=rest, scope=scope, defaults=defaults, dag_state=dag_runs.state)

    def _span(self, context: Context) -> Span | None:
        """Return the range that the DAG run is about, or None when it is about what is new."""
        run: Any = context["dag_run"]
        if run.run_type == "backfill":
            begin, end = run.data_interval_start, run.data_interval_end
            if begin is None or end is None:
                raise Refused(f"backfill run {run.run_id}", "has no data interval", "Give the DAG a cron timetable.")
            return Span.of(begin, end)
        if not self.since and not self.until:
            return None
        if not self.since:
            raise Refused("parameter 'until'", "is given without 'since'", "Give the begin of the range too.")
        until = moment(self.until, "until") if self.until else datetime.now(UTC)
        return Span.of(moment(self.since, "since"), until)

    @property
    def _pace(self) -> Pace:
        return params.settings(Pace, {"order": self.order, "at_once": self.at_once, "lookback_h": self.lookback_h})

    def _planned(self, look: Look, span: Span | None, pace: Pace) -> list[Planned]:
        if span is None:
            return list(look.new_runs(pace.lookback_h))
        return list(look.runs_between(span, newest_first=pace.order == "newest"))

    def _release_new(self, look: Look, pace: Pace) -> dict[str, Any]:
        starter = Starter(look.rest, NEW)
        decided = []
        for planned in look.new_runs(pace.lookback_h):
            if planned.action == "release":
                self._start(look, starter, planned)
            elif planned.action != "wait":
                starter.pass_over(planned)
            decided.append(planned)
        return self._report(summary.as_dict(decided, None), decided)

    def _start(self, look: Look, starter: Starter, planned: Planned) -> bool:
        try:
            return starter.start(planned, look.planner.conf(planned))
        except Refused as error:
            # The other runs are not to wait for somebody to correct this one; its own page says what is wrong.
            self.log.error("Not released: %s", error)  # noqa: TRY400 - the text is the whole of it
            return False

    def _refuse(self, look: Look, planned: Sequence[Planned]) -> None:
        starter = Starter(look.rest, OLD)
        for plan in planned:
            if plan.action == "refuse":
                starter.pass_over(plan)

    def _go_on(self, backlog: Backlog) -> dict[str, Any]:
        """Start what may start, then wait in the triggerer; return the summary when nothing is left."""
        with airflow_outcome(), self._looking() as look:
            backlog, stands_back = self._advance(look, backlog)
            if not backlog.pending and not backlog.going_on:
                span = Span(begin_ms=backlog.begin_ms, end_ms=backlog.end_ms)
                return self._plan(look, span, self._pace) | {"started": backlog.started}
        self.log.info("%d releases go on, %d wait their turn.", len(backlog.going_on), len(backlog.pending))
        self.defer(
            trigger=ReleaseDagRunsTrigger(
                dag_run_ids=backlog.dag_run_ids,
                # Half of them at a time: each return costs a task's start, each idle slot a release's.
                ended_min=max(1, len(backlog.going_on) // 2),
                wait_max_s=STAND_BACK_S if stands_back else WAIT_MAX_S,
            ),
            method_name="execute_complete",
            kwargs={"backlog": backlog.to_dict()},
        )
        raise AssertionError("unreachable: defer raises")

    def _advance(self, look: Look, backlog: Backlog) -> tuple[Backlog, bool]:
        """Return the backlog after starting what may start, and whether new runs are let pass."""
        pace, pending, started = self._pace, list(backlog.pending), 0
        going_on = [run for run in backlog.going_on if dag_runs.state(dag_runs.release_id(run)) is State.ALIVE]
        stands_back = bool(pending) and new_releases_go_on(
            look.rest, look.experiment_ids, hours_ago_ms(pace.lookback_h)
        )
        while pending and not stands_back and len(going_on) < pace.at_once:
            run_id = pending.pop(0)
            if self._start_old(look, run_id):
                going_on.append(run_id)
                started += 1
        advanced = backlog.replace(pending=tuple(pending), going_on=tuple(going_on), started=backlog.started + started)
        return advanced, stands_back

    def _start_old(self, look: Look, run_id: str) -> bool:
        """Decide about the run anew, as somebody may have released or deleted it since, and start its release."""
        try:
            planned = look.run(run_id)
        except Refused as error:
            self.log.warning("Training run %s is gone: %s", run_id, error)
            return False
        return planned.action == "release" and self._start(look, Starter(look.rest, OLD), planned)

    def _plan(self, look: Look, span: Span | None, pace: Pace) -> dict[str, Any]:
        planned = self._planned(look, span, pace)
        return self._report(summary.as_dict(planned, lambda: look.estimate(pace.at_once)), planned)

    def _report(self, report: dict[str, Any], planned: list[Planned]) -> dict[str, Any]:
        for line in summary.lines(planned):
            self.log.info(line)
        self.log.info(summary.total_line(report))
        return report


def _backlog(span: Span, planned: Sequence[Planned]) -> Backlog:
    """Return what a range begins with; releases that go on under their own id are waited for as well."""
    return Backlog(
        begin_ms=span.begin_ms,
        end_ms=span.end_ms,
        pending=tuple(plan.training_run_id for plan in planned if plan.action == "release"),
        going_on=tuple(plan.training_run_id for plan in planned if plan.action == "wait"),
    )
