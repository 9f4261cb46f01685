"""State of a release for people, from the tags of its training run and its DAG run in Airflow."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from airflow_onnx.airflow_urls import dag_id_of
from airflow_onnx.ui import numbers
from airflow_onnx.ui.airflow_state import STEPS, AirflowRelease, TaskState, waiting_for_measurement
from airflow_onnx.ui.release_index import ReleaseRecord, Snapshot

# In the order of the filter's buttons.
WORDS = {
    "waiting": "waiting",
    "running": "running",
    "released": "released",
    "warning": "released with a warning",
    "rolled_back": "rolled back",
    "refused": "refused",
    "failed": "failed",
    "retired": "retired",
}
_DOING = {
    "wait_for_training": "waits for the end of the training run",
    "export": "exports",
    "tune": "tunes",
    "check": "checks the file",
    "parity_latency": "compares and measures",
    "upload": "uploads",
    "register": "registers",
    "approve": "waits for approval",
    "promote": "moves the alias",
}
_UNFINISHED = ("running", "triggered", "waiting", "accepted")
_WORKING = ("running", "deferred", "awaiting_input", "up_for_retry", "queued", "scheduled", "restarting")
# A DAG run that was just triggered may not be in the database yet.
_JUST_STARTED = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """State and one sentence of a DAG run that is active or has just ended."""

    state: str
    text: str


class Releases:
    """The DAG runs in progress, found by training run or by DAG run.

    :param dag_ids: the DAGs whose DAG runs were read.
    :param known: False if the database cannot be read. Then the tags alone decide.
    """

    def __init__(self, found: Sequence[AirflowRelease], *, dag_ids: Collection[str] = (), known: bool = True) -> None:
        self.known = known
        self.dag_ids = dag_ids
        self.all = found
        self._of_training_run = {one.training_run_id: one for one in reversed(found) if one.training_run_id}
        self._of_dag_run = {one.ids: one for one in found}
        self._queue = [one.ids for one in waiting_for_measurement(found)]

    def of(self, record: ReleaseRecord) -> AirflowRelease | None:
        """Return the DAG run in progress that releases the training run of a record."""
        ids = dag_id_of(record.dag_run_url), record.dag_run_id
        return self._of_training_run.get(record.run_id) or self._of_dag_run.get(ids)

    def waiting_count(self) -> int:
        """Return the number of releases that wait for the measuring slot."""
        return len(self._queue)

    def progress(self, release: AirflowRelease, now: datetime | None = None) -> Progress:
        """Return the state of a DAG run in progress, with its present step."""
        if not release.is_active:
            return Progress(state="running", text="has just ended; the result is being read")
        if release.ids in self._queue:
            before = self._queue.index(release.ids)
            place = f"{before} before it" if before else "next in the queue"
            return Progress(state="waiting", text=f"waits for the measuring slot, {place}")
        task = _present(release.tasks)
        if task is None:
            failed = next((STEPS[one.task_id] for one in release.tasks if one.state == "failed"), None)
            text = f"ends: {failed} did not pass" if failed else "runs"
            text = "waits for its start" if release.state == "queued" else text
            return Progress(state="waiting" if release.state == "queued" else "running", text=text)
        is_waiting = task.task_id == "wait_for_training" or release.waits_for_approval
        if task.state == "up_for_retry":
            return Progress(state="running", text=f"{STEPS[task.task_id]} failed and will be tried again")
        since = numbers.since(task.started_at, now) if task.state in ("running", "deferred") else ""
        return Progress(
            state="waiting" if is_waiting else "running", text=_DOING[task.task_id] + (f", {since}" if since else "")
        )


def _present(tasks: Sequence[TaskState]) -> TaskState | None:
    return next((task for state in _WORKING for task in tasks if task.state == state), None)


def model_of(record: ReleaseRecord, releases: Releases) -> str:
    """Return the name of the registered model, from the parameters of the DAG run until its tag is set; else empty."""
    release = None if record.model_name else releases.of(record)
    return record.model_name or str(release.conf.get("model_name") or "" if release else "")


def state_of(record: ReleaseRecord, releases: Releases, snapshot: Snapshot, now: datetime | None = None) -> str:
    """Return the key of the state in `WORDS`."""
    if release := releases.of(record):
        if release.is_active:
            return releases.progress(release, now).state
        if record.status in _UNFINISHED:
            return "running"
    if snapshot.roll_back_of(record):
        return "rolled_back"
    if record.status == "released":
        return "warning" if record.warning else "released"
    if record.status in ("refused", "retired"):
        return record.status
    if record.status in ("running", "triggered", "waiting") and not is_abandoned(record, releases, now):
        return "waiting" if record.status == "waiting" else "running"
    return "failed"


def is_abandoned(record: ReleaseRecord, releases: Releases, now: datetime | None = None) -> bool:
    """Return True for a release whose tags say "running" although no DAG run of it is active."""
    if record.status not in _UNFINISHED or not releases.known or releases.of(record):
        return False
    if (dag_id := dag_id_of(record.dag_run_url)) and dag_id not in releases.dag_ids:
        return False  # The DAG was removed, or the user may not read it.
    started = record.attempted_at
    return started is None or (now or datetime.now(UTC)) - started > _JUST_STARTED
