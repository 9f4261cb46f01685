"""Start of the release of a training run, once, and the tags that record it on the run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

from airflow_onnx import airflow_urls, dag_runs, run_notes
from airflow_onnx.dag_runs import State
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.tracking import run_log
from airflow_onnx.watch.decide import Decider
from onnx_release.errors import Refused, ReleaseError, Transient
from onnx_release.records import TrainedModel
from onnx_release.training_runs import tags
from onnx_release.training_runs.decide import Decision
from onnx_release.training_runs.server import RunQuery

log = logging.getLogger(__name__)

Origin = Literal["new", "old"]
"""``new``: a run that has just ended. ``old``: a run of a range in the past. The value of the tag ``watched``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseStarter:
    """Starts releases and records the decision about each run in MLflow.

    The DAG run's id is made from the training run's id. Airflow has at most one DAG run of an id, so that any number of
    calls starts one release. The tag ``watched`` is set last: a start that crashes before it is repeated.

    :param dag_run: the DAG run of the watch.
    """

    decider: Decider
    hook: MlflowHook
    dag_run: Any
    origin: Origin

    def start(self, decision: Decision) -> bool:
        """Start the run's release. Return False if it was started before, or if Airflow refuses its parameters."""
        run_id, dag_id, dag_run_id = decision.training_run_id, decision.dag_id, decision.dag_run_id
        started_tags = {
            tags.STATUS: "triggered",
            tags.ATTEMPTED_AT: tags.now(),
            tags.HEADLINE: "",
            tags.REASON: "",
            tags.REASON_CODE: "",
            tags.DAG_RUN_ID: dag_run_id,
            tags.DAG_RUN_URL: airflow_urls.dag_run_url(dag_id, dag_run_id),
            tags.RERUN_URL: airflow_urls.rerun_url(dag_id, run_id, decision.conf, tags.VALUE_MAX_CHARACTERS),
        }
        self.decider.rest.set_tags(run_id, started_tags)
        try:
            note = run_notes.title(decision.run_name, run_id, decision.model_name)
            started = dag_runs.start(dag_id, dag_run_id, decision.conf, note)
        except Refused as error:
            # The other runs do not wait until a person corrects this one.
            self._record_refusal(decision, error)
            self._tag_watched(run_id, "refuse")
            log.error("Not released: %s", error)  # noqa: TRY400 - the message has all facts
            return False
        self._tag_watched(run_id, self.origin)
        log.info("%s %s", dag_run_id, "started" if started else "was started before")
        return started

    def record(self, decision: Decision) -> None:
        """Record that no release of the run is started, so that later searches omit the run."""
        if decision.action == "refuse":
            refusal = ReleaseError.from_dict(decision.refusal) if decision.refusal else None
            if isinstance(refusal, Refused) and not decision.is_recorded:
                self._record_refusal(decision, refusal)
            self._tag_watched(decision.training_run_id, "refuse")
        else:
            self._tag_watched(decision.training_run_id, f"{decision.action}: {decision.reason}")

    def _record_refusal(self, decision: Decision, refusal: Refused) -> None:
        """Log the report and the tags of a release that is refused."""
        watch = SimpleNamespace(dag_id=self.dag_run.dag_id, run_id=self.dag_run.run_id, conf=decision.conf)
        context: Any = {"dag_run": watch}
        trained_model = TrainedModel(
            training_run_id=decision.training_run_id,
            model_uri="",
            run_name=decision.run_name or None,
            model_name=decision.model_name or None,
        )
        report = run_log.refused_report(context, refusal, trained_model)
        try:
            run_log.log_report(self.hook, context, report, release_dag_id=decision.dag_id)
        except (Refused, Transient) as failure:
            # The other runs do not wait until the artifacts' store is repaired.
            log.warning("The report of the refusal is not logged in MLflow: %s", failure)
            found = {tags.STATUS: "refused", tags.REASON: str(refusal), tags.REASON_CODE: refusal.code}
            found |= {tags.HEADLINE: report.headline, tags.DAG_RUN_ID: "", tags.ATTEMPTED_AT: tags.now()}
            self.decider.rest.set_tags(decision.training_run_id, tags.shortened(found))

    def _tag_watched(self, training_run_id: str, text: str) -> None:
        self.decider.rest.set_tags(training_run_id, tags.shortened({tags.WATCHED: text}))


def start_new_releases(starter: ReleaseStarter, lookback_h: float) -> list[Decision]:
    """Start the releases of new finished runs, record the runs without a release, and return all decisions."""
    decisions = []
    for decision in starter.decider.new_runs(lookback_h):
        if decision.action == "release":
            starter.start(decision)
        elif decision.action != "wait":
            starter.record(decision)
        decisions.append(decision)
    return decisions


def new_releases_active(decider: Decider, since_ms: int) -> bool:
    """Return True while the release of a run that has just ended is queued or running."""
    new: Origin = "new"
    conditions = [
        f"attributes.end_time >= {since_ms}",
        f"tags.`{tags.WATCHED}` = '{new}'",
        f"tags.`{tags.STATUS}` != 'released'",
        f"tags.`{tags.STATUS}` != 'refused'",
        # It waits for a person, not for a worker.
        f"tags.`{tags.STATUS}` != '{run_log.WAITING}'",
    ]
    query = RunQuery(experiment_ids=list(decider.released_experiments), filter=" AND ".join(conditions))
    return any(decider.release_state(run) is State.ACTIVE for run in decider.rest.runs(query))
