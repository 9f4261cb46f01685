"""Ends of releases that no task could record: an outage was longer than all retries, or Airflow lost the DAG run.

The training run then says that its release is in progress. The watch compares this with the state of the DAG run, and
writes the end. It writes nothing while the DAG run is active, and nothing about DAG runs of another Airflow.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_onnx import airflow_urls, dag_runs
from airflow_onnx.dag_runs import State
from airflow_onnx.deployment import settings
from airflow_onnx.task_outcome import TaskOutcome, dag_run_outcome
from airflow_onnx.tracking import run_log, unrecorded
from onnx_release.errors import Refused, Transient
from onnx_release.training_runs import tags
from onnx_release.training_runs.records import TrainingRun
from onnx_release.training_runs.server import RunQuery

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_onnx.hooks.mlflow import MlflowHook
    from airflow_onnx.hooks.mlflow_rest import MlflowRest

log = logging.getLogger(__name__)

# A DAG run is created some time after the tag, and a teardown may just have ended.
GRACE = timedelta(minutes=10)
# Candidates of one call. The next call of the watch takes the others.
RUNS_MAX = 200
_IN_PROGRESS = (
    f"tags.`{tags.LAST_ATTEMPT}` LIKE 'running %'",
    f"tags.`{tags.LAST_ATTEMPT}` LIKE '{run_log.WAITING} %'",
    f"tags.`{tags.STATUS}` = 'triggered'",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """The release of a training run by its tags, which are not trusted."""

    training_run: TrainingRun
    dag_id: str
    dag_run_id: str


def record_ends(hook: MlflowHook, rest: MlflowRest, context: Context) -> int:
    """Write the end of each release that is in progress by its tags alone. Return the number of ends.

    A second call writes nothing. During an outage the next call of the watch writes them.
    """
    written = 0
    try:
        for attempt in _attempts(rest):
            written += _record(hook, context, attempt)
    except (Transient, AirflowRuntimeError) as failure:
        log.warning("Not every end of a release is recorded, and the next DAG run of the watch tries it: %s", failure)
    return written


def _attempts(rest: MlflowRest) -> Iterator[_Attempt]:
    experiments = [one.experiment_id for one in rest.experiments()]
    begun_before = f"{datetime.now(UTC) - GRACE:%Y-%m-%dT%H:%M:%SZ}"
    found: dict[str, TrainingRun] = {}
    for condition in _IN_PROGRESS:
        query = RunQuery(experiment_ids=experiments, filter=condition, page_size=RUNS_MAX)
        for _, run in zip(range(RUNS_MAX), rest.runs(query), strict=False):
            found[run.run_id] = run
    for run in found.values():
        is_triggered = run.tags.get(tags.STATUS) == "triggered"
        url = run.tags.get(tags.DAG_RUN_URL if is_triggered else tags.LAST_ATTEMPT_URL, "")
        dag_id, dag_run_id = airflow_urls.dag_run_of(url)
        if dag_run_id and run.tags.get(tags.ATTEMPTED_AT, "") < begun_before:
            yield _Attempt(training_run=run, dag_id=dag_id, dag_run_id=dag_run_id)


def _record(hook: MlflowHook, context: Context, attempt: _Attempt) -> bool:
    """Write the end of an attempt whose DAG run is not active. Return True if it was written."""
    run_id, dag_id, dag_run_id = attempt.training_run.run_id, attempt.dag_id, attempt.dag_run_id
    try:
        state = dag_runs.state(dag_id, dag_run_id)
        # Without an address the DAG run may belong to another Airflow.
        if state is State.ACTIVE or (state is State.ABSENT and not settings.airflow_url()):
            return False
        conf = airflow_urls.conf_of(attempt.training_run.tags.get(tags.RERUN_URL, ""))
        release: Any = {
            "dag_run": SimpleNamespace(dag_id=dag_id, run_id=dag_run_id, conf={"training_run_id": run_id} | conf),
            "ti": _Tasks(context["ti"], dag_id, dag_run_id),
        }
        if version := unrecorded.published_version(hook, release, run_id):
            run_log.log_released(hook, release, run_id, version)
            log.warning("The release %s of %s is recorded now: version %s.", dag_run_id, run_id, version.version)
            return True
        outcome = _outcome(release, state)
        run_log.log_end(hook, release, run_id, outcome)
    except Refused as refusal:
        # For example a tag with a wrong DAG, or a run that was deleted meanwhile.
        log.info("The end of the release of %s is not recorded: %s", run_id, refusal)
        return False
    log.warning("The end of the release %s of %s is recorded now: %s", dag_run_id, run_id, outcome.headline)
    return True


def _outcome(release: Context, state: State) -> TaskOutcome:
    if state is State.ABSENT:
        ended = "the DAG run was deleted before its end was recorded"
        return TaskOutcome(status="failed", reason=ended, headline=f"Failed: {ended}.", next_step="Release it again.")
    return dag_run_outcome(release)


@dataclass(frozen=True, slots=True)
class _Tasks:
    """The tasks of another DAG run, with the calls of a task instance that `dag_run_outcome` needs."""

    ti: Any
    dag_id: str
    run_id: str
    task_id: str = "clean_work"

    def get_task_states(self, dag_id: str, run_ids: list[str]) -> Any:
        return self.ti.get_task_states(dag_id, run_ids=run_ids)

    def xcom_pull(self, task_ids: str, key: str) -> Any:
        return self.ti.xcom_pull(task_ids=task_ids, dag_id=self.dag_id, run_id=self.run_id, key=key)
