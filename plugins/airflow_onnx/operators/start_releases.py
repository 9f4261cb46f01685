"""Operator that starts a release for each finished training run: new runs, or those of a range of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_onnx import dag_runs, defaults, params
from airflow_onnx.errors import WatchRefused
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.operators.cancelled import EndsWhenCancelled
from airflow_onnx.task_outcome import airflow_outcome
from airflow_onnx.triggers.release_dag_runs import ReleaseDagRunsTrigger
from airflow_onnx.watch import ends
from airflow_onnx.watch.backfill import Backfill, BackfillOptions, Backlog
from airflow_onnx.watch.decide import Decider
from airflow_onnx.watch.routes import read_routes
from airflow_onnx.watch.start import ReleaseStarter, start_new_releases
from onnx_release.text import printable, shorten
from onnx_release.training_runs import summary
from onnx_release.training_runs.decide import Decision
from onnx_release.training_runs.estimate import Estimate, estimate
from onnx_release.training_runs.queries import Scope, TimeSpan, parse_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import Context

# While releases of new runs delay a backfill, it checks them at this interval.
DELAYED_WAIT_S = 10.0
WAIT_MAX_S = 600.0
# The types of the DAG runs that also record the ends of releases.
_RECORDING = ("scheduled", "manual")
# Experiments without a route that a summary names.
_UNROUTED_MAX, _NAME_MAX_CHARACTERS = 20, 80


class StartReleasesOperator(EndsWhenCancelled, BaseOperator):
    """Starts one DAG run of a release DAG for each finished training run.

    The type of the DAG run decides about the training runs:

    - A scheduled, asset-triggered or manual DAG run takes the runs that ended within the lookback and were not handled
      yet. It starts their releases and ends.
    - A backfill DAG run takes every run that ended in its data interval.
    - A manual DAG run with `since` takes every run of that range.

    The first also records the ends of releases that no task could record: see `airflow_onnx.watch.ends`. The last two
    keep `at_once` releases in progress until all have ended, and are deferred while they wait. They start none while
    the release of a new training run is in progress.

    Returns the summary of `onnx_release.training_runs.summary.to_dict`. With `plan_only` nothing is started.

    :param experiments: names, ids or patterns of MLflow's experiments. Empty: those that a route matches.
    :param routes: the release DAG and the parameters by experiment: see `airflow_onnx.watch.routes`.
    :param run_filter: more conditions in MLflow's filter language.
    :param lookback_h: the time in hours in which a run counts as new.
    :param since: begin of a range in ISO 8601, in UTC without a time zone. Empty for no range.
    :param until: end of the range, which is not part of it. Empty for now.
    :param order: ``oldest`` or ``newest`` first.
    :param at_once: releases of a range that are in progress at the same time.
    :param mlflow_conn_id: an Airflow connection of type `mlflow`.
    """

    template_fields: Sequence[str] = (
        "experiments",
        "routes",
        "run_filter",
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
        routes: Any,
        experiments: Any = None,
        run_filter: str = "",
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
        self.routes = routes
        self.run_filter = run_filter
        self.lookback_h = lookback_h
        self.since = since
        self.until = until
        self.order = order
        self.at_once = at_once
        self.plan_only = plan_only
        self.mlflow_conn_id = mlflow_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the releases of new runs, or begin a backfill."""
        with airflow_outcome(), self._backfill(context) as backfill:
            span = self._time_span(context)
            decider, options = backfill.decider, backfill.options
            if params.value(self.plan_only):
                decisions = list(decider.new_runs(options.lookback_h)) if span is None else backfill.decisions(span)
                return self._report(decider, decisions, lambda: self._estimate(backfill))
            if span is None:
                starter = replace(backfill.starter, origin="new")
                started = start_new_releases(starter, options.lookback_h)
                # Not after each event: a burst of them would repeat the search.
                if context["dag_run"].run_type in _RECORDING:
                    ends.record_ends(starter.hook, decider.rest, context)
                return self._report(decider, started)
            backlog = backfill.begin(span)
        return self._continue(context, backlog)

    def execute_complete(self, context: Context, event: dict[str, Any], backlog: dict[str, Any]) -> dict[str, Any]:
        """Continue a backfill after some of its releases have ended."""
        return self._continue(context, Backlog.from_dict(backlog))

    @contextmanager
    def _backfill(self, context: Context) -> Iterator[Backfill]:
        routes = read_routes(self.routes)
        scope = Scope(
            experiments=tuple(str(item) for item in params.value(self.experiments) or ()),
            run_filter=self.run_filter,
            routed=tuple(routes.patterns),
        )
        if not scope.experiments:
            self.log.warning("No experiment is watched: set [onnx_release] watch_experiments, or the parameter.")
        options = params.settings(
            BackfillOptions, {"order": self.order, "at_once": self.at_once, "lookback_h": self.lookback_h}
        )
        hook = MlflowHook(self.mlflow_conn_id)
        with MlflowRest(hook.server) as rest:
            decider = Decider(
                rest=rest, scope=scope, routes=routes, dag_state=dag_runs.state, absent=dag_runs.absent
            )  # fmt: skip
            starter = ReleaseStarter(decider=decider, hook=hook, dag_run=context["dag_run"], origin="old")
            yield Backfill(starter, options)

    def _time_span(self, context: Context) -> TimeSpan | None:
        """Return the range of the DAG run, or None if it is about new runs."""
        run: Any = context["dag_run"]
        if run.run_type == "backfill":
            begin, end = run.data_interval_start, run.data_interval_end
            if begin is None or end is None:
                raise WatchRefused(
                    f"The backfill run {run.run_id}",
                    "has no data interval",
                    "Give the DAG a cron timetable.",
                    code="no_data_interval",
                )
            return TimeSpan.between(begin, end)
        if not self.since and not self.until:
            return None
        if not self.since:
            raise WatchRefused(
                "The parameter 'until'", "is set without 'since'", "Set the begin of the range too.", code="no_since"
            )
        until = parse_time(self.until, "until") if self.until else datetime.now(UTC)
        return TimeSpan.between(parse_time(self.since, "since"), until)

    def _continue(self, context: Context, backlog: Backlog) -> dict[str, Any]:
        """Start the next releases, then defer. Return the summary when no run is left."""
        with airflow_outcome(), self._backfill(context) as backfill:
            backlog, delayed = backfill.advance(backlog)
            if not backlog.pending and not backlog.active:
                decisions = backfill.decisions(backlog.span)
                report = self._report(backfill.decider, decisions, lambda: self._estimate(backfill))
                return report | {"started": backlog.started}
        self.log.info("Releases in progress: %d. Waiting: %d.", len(backlog.active), len(backlog.pending))
        self.defer(
            trigger=ReleaseDagRunsTrigger(
                dag_runs=backlog.active_dag_runs,
                # A return costs the start of a task, and an unused slot delays a release: half of them is a compromise.
                ended_min=max(1, len(backlog.active) // 2),
                wait_max_s=DELAYED_WAIT_S if delayed else WAIT_MAX_S,
            ),
            method_name="execute_complete",
            kwargs={"backlog": backlog.to_dict()},
        )
        raise AssertionError("unreachable: defer raises")

    @staticmethod
    def _estimate(backfill: Backfill) -> Estimate:
        decider = backfill.decider
        return estimate(decider.rest, list(decider.experiments), backfill.options.at_once)

    def _report(
        self, decider: Decider, decisions: list[Decision], estimated: Callable[[], Estimate] | None = None
    ) -> dict[str, Any]:
        report = summary.to_dict(decisions, estimated)
        # A search for new runs does not read the runs of these.
        if unrouted := decider.unrouted:
            names = [shorten(printable(name), _NAME_MAX_CHARACTERS) for name in unrouted[:_UNROUTED_MAX]]
            report |= {"unrouted_experiments": names, "unrouted_omitted": len(unrouted) - len(names)}
            more = f" and {len(unrouted) - len(names)} more" if len(unrouted) > len(names) else ""
            self.log.info("Not released, without a route: the experiments %s%s.", ", ".join(names), more)
        self.log.info("%s", summary.total_line(report))
        for line in (*summary.group_lines(report), *(summary.table_lines(report) if decisions else ())):
            self.log.info("%s", line)
        return report
