"""Starts the release of a training run exactly once, and writes on the run that it did."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from airflow_onnx import airflow_urls, dag_runs
from airflow_onnx.dag_runs import State
from airflow_onnx.hooks.mlflow_rest import MlflowRest, RunQuery
from airflow_onnx.tracking import tags
from airflow_onnx.watch.decide import Planned
from airflow_onnx.watch.queries import WATCHED
from onnx_release.errors import Refused

log = logging.getLogger(__name__)

NEW, OLD = "new", "old"


@dataclass(frozen=True, slots=True)
class Starter:
    """Starts releases and notes on each run what was decided.

    The DAG run's id is made from the training run's, and Airflow has one DAG run of an id: whoever asks, and however
    often, there is one. The mark that keeps later looks away comes last, so that a look which dies in between is
    repeated by the next.

    :param origin: `NEW` for runs that have just ended, `OLD` for a range of the past.
    """

    rest: MlflowRest
    origin: str

    def start(self, planned: Planned, conf: dict[str, Any]) -> bool:
        """Start the run's release; False when it was started before. Raises `Refused` for bad parameters."""
        dag_run_id = planned.dag_run_id
        self.rest.set_tags(
            planned.training_run_id,
            {
                tags.STATUS: "triggered",
                tags.DAG_RUN_ID: dag_run_id,
                tags.DAG_RUN_URL: dag_runs.url(dag_run_id),
                tags.RERUN_URL: airflow_urls.rerun_url(planned.training_run_id, conf, tags.VALUE_MAX_CHARACTERS),
            },
        )
        try:
            started = dag_runs.start(dag_run_id, conf)
        except Refused as error:
            self.refuse(planned.training_run_id, str(error))
            raise
        self._mark(planned.training_run_id, self.origin)
        log.info("%s %s", dag_run_id, "started" if started else "was started before")
        return started

    def pass_over(self, planned: Planned) -> None:
        """Note on a run that nothing is started for it, so that no later look asks again."""
        if planned.action == "refuse":
            self.refuse(planned.training_run_id, planned.reason)
        else:
            self._mark(planned.training_run_id, f"{planned.action}: {planned.reason}")

    def refuse(self, training_run_id: str, reason: str) -> None:
        """Put a refusal on the run, where its owner looks."""
        text = reason[: tags.VALUE_MAX_CHARACTERS]
        self.rest.set_tags(training_run_id, {tags.STATUS: "refused", tags.REASON: text, WATCHED: "refuse"})

    def _mark(self, training_run_id: str, text: str) -> None:
        self.rest.set_tags(training_run_id, {WATCHED: text[: tags.VALUE_MAX_CHARACTERS]})


def new_releases_go_on(rest: MlflowRest, experiment_ids: list[str], since_ms: int) -> bool:
    """Tell whether the release of a run that has just ended is waiting or running; old runs then stand back."""
    conditions = [
        f"attributes.end_time >= {since_ms}",
        f"tags.`{WATCHED}` = '{NEW}'",
        f"tags.`{tags.STATUS}` != 'released'",
        f"tags.`{tags.STATUS}` != 'refused'",
    ]
    query = RunQuery(experiment_ids=experiment_ids, filter=" AND ".join(conditions))
    return any(dag_runs.state(dag_runs.release_id(run.run_id)) is State.ALIVE for run in rest.runs(query))
