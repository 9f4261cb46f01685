"""Releases of the training runs of a range of time, a limited number at the same time."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from airflow_onnx import dag_runs, defaults
from airflow_onnx.dag_runs import State
from airflow_onnx.tracking import run_log
from airflow_onnx.watch.decide import Decider
from airflow_onnx.watch.start import ReleaseStarter, new_releases_active
from onnx_release.errors import Refused
from onnx_release.records.base import Record
from onnx_release.training_runs import tags
from onnx_release.training_runs.decide import Decision, hours_ago_ms
from onnx_release.training_runs.queries import TimeSpan

log = logging.getLogger(__name__)


class BackfillOptions(Record):
    """Order and parallelism of a backfill.

    `lookback_h` is the time in hours in which a run counts as new: while its release is active, no old one is started.
    """

    order: Literal["oldest", "newest"] = "oldest"
    at_once: int = Field(default=defaults.RELEASES_AT_ONCE, ge=1, le=defaults.RELEASES_AT_ONCE_MAX)
    lookback_h: float = defaults.WATCH_LOOKBACK_H


class Backlog(Record):
    """Progress of a backfill, as ids of training runs. Airflow's database stores it while the task is deferred.

    `active` has the DAG of each release in progress.
    """

    begin_ms: int
    end_ms: int
    pending: tuple[str, ...]
    active: dict[str, str]
    started: int = 0

    @property
    def span(self) -> TimeSpan:
        """The range of the backfill."""
        return TimeSpan(begin_ms=self.begin_ms, end_ms=self.end_ms)

    @property
    def active_dag_runs(self) -> dict[str, list[str]]:
        """The DAG runs of the releases in progress, by the id of their DAG."""
        found: dict[str, list[str]] = {}
        for run_id, dag_id in self.active.items():
            found.setdefault(dag_id, []).append(dag_runs.release_dag_run_id(run_id))
        return found


@dataclass(frozen=True, slots=True)
class Backfill:
    """Starts the releases of old runs step by step."""

    starter: ReleaseStarter
    options: BackfillOptions

    @property
    def decider(self) -> Decider:
        """The decisions about the runs."""
        return self.starter.decider

    def decisions(self, span: TimeSpan) -> list[Decision]:
        """Return the decisions about all runs of the range, in the order of the options."""
        return list(self.decider.runs_between(span, newest_first=self.options.order == "newest"))

    def begin(self, span: TimeSpan) -> Backlog:
        """Record the refused runs and return the runs to release. The backfill also waits for releases in progress."""
        decisions = self.decisions(span)
        for decision in decisions:
            if decision.action == "refuse":
                self.starter.record(decision)
        return Backlog(
            begin_ms=span.begin_ms,
            end_ms=span.end_ms,
            pending=tuple(decision.training_run_id for decision in decisions if decision.action == "release"),
            active={decision.training_run_id: decision.dag_id for decision in decisions if decision.action == "wait"},
        )

    def advance(self, backlog: Backlog) -> tuple[Backlog, bool]:
        """Start as many releases as the options allow.

        :return: the new backlog, and True if releases of new runs delay the old ones.
        """
        pending, started = list(backlog.pending), 0
        active = {
            run_id: dag_id
            for run_id, dag_id in backlog.active.items()
            if dag_runs.state(dag_id, dag_runs.release_dag_run_id(run_id)) is State.ACTIVE
            and not self._waits_for_approval(run_id)
        }
        since_ms = hours_ago_ms(self.options.lookback_h)
        delayed = bool(pending) and new_releases_active(self.decider, since_ms)
        while pending and not delayed and len(active) < self.options.at_once:
            run_id = pending.pop(0)
            if dag_id := self._start(run_id):
                active[run_id] = dag_id
                started += 1
        changed = backlog.replace(pending=tuple(pending), active=active, started=backlog.started + started)
        return changed, delayed

    def _waits_for_approval(self, run_id: str) -> bool:
        """Return True for a release that waits for a person. It must not delay the other releases."""
        attempt = self.decider.rest.run(run_id).tags.get(tags.LAST_ATTEMPT, "")
        return attempt.startswith(f"{run_log.WAITING} ")

    def _start(self, run_id: str) -> str:
        """Start the release and return its DAG, or an empty text if none was started."""
        # Decided again: the run may have been released or deleted since the backfill began.
        try:
            decision = self.decider.run(run_id)
        except Refused as error:
            log.warning("The training run %s is skipped: %s", run_id, error)
            return ""
        return decision.dag_id if decision.action == "release" and self.starter.start(decision) else ""
