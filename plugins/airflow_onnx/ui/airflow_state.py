"""DAG runs and tasks of releases in Airflow's database, for the pages of the API server."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_onnx.compat import WAITING_FOR_ANSWER
from airflow_onnx.dag_roles import DagRole
from airflow_onnx.dag_runs import ACTIVE_STATES
from airflow_onnx.deployment import placement

RELEASES_MAX = 200
# The tags of a release that has just ended may be some seconds old.
ENDED_WITHIN = timedelta(seconds=60)
# Tasks of one release: their ids and their names for people.
STEPS = {
    "wait_for_training": "wait",
    "export": "export",
    "tune": "tune",
    "check": "check",
    "parity_latency": "measure",
    "upload": "upload",
    "register": "register",
    "approve": "approve",
    "promote": "promote",
}
_WAITING = ("scheduled", "queued")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """A task of a DAG run. `state` is None before Airflow schedules it."""

    task_id: str
    state: str | None
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    pool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AirflowRelease:
    """A DAG run of a release, or of a move of an alias. `conf` is not trusted.

    `started_by` is the user who triggered it, else empty.
    """

    dag_id: str
    dag_run_id: str
    state: str
    conf: dict[str, Any]
    started_at: datetime | None
    ended_at: datetime | None
    note: str
    started_by: str = ""
    tasks: tuple[TaskState, ...] = ()

    @property
    def ids(self) -> tuple[str, str]:
        """The ids of the DAG and of the DAG run."""
        return self.dag_id, self.dag_run_id

    @property
    def is_active(self) -> bool:
        """True while the DAG run is queued or running."""
        return self.state in ACTIVE_STATES

    @property
    def waits_for_approval(self) -> bool:
        """True while the task `approve` waits for a person."""
        return any(task.task_id == "approve" and task.state in WAITING_FOR_ANSWER for task in self.tasks)

    @property
    def training_run_id(self) -> str:
        """The training run of the parameters or of the DAG run's id, else empty."""
        given = self.conf.get("training_run_id")
        if isinstance(given, str) and given:
            return given
        return self.dag_run_id.removeprefix("release__") if self.dag_run_id.startswith("release__") else ""


def releases_in_progress(dag_ids: Collection[str]) -> list[AirflowRelease]:
    """Return the active DAG runs of the DAGs with their tasks, and those that have just ended, the newest first."""
    from airflow.models.dagrun import DagRun
    from sqlalchemy import and_, or_

    ended = and_(DagRun.state.notin_(ACTIVE_STATES), DagRun.end_date >= datetime.now(UTC) - ENDED_WITHIN)
    return _releases(DagRun.dag_id.in_(dag_ids), or_(DagRun.state.in_(ACTIVE_STATES), ended))


def moves_in_progress(dag_ids: Collection[str]) -> list[AirflowRelease]:
    """Return the active DAG runs of DAGs that move an alias, the newest first."""
    from airflow.models.dagrun import DagRun

    return _releases(DagRun.dag_id.in_(dag_ids), DagRun.state.in_(ACTIVE_STATES))


def newest_releases(dag_ids: Collection[str]) -> list[AirflowRelease]:
    """Return the newest DAG runs of the DAGs in any state."""
    from airflow.models.dagrun import DagRun

    return _releases(DagRun.dag_id.in_(dag_ids), limit=50)


def release(dag_id: str, dag_run_id: str) -> AirflowRelease | None:
    """Return one DAG run with its tasks, or None if it does not exist."""
    from airflow.models.dagrun import DagRun

    found = _releases(DagRun.dag_id == dag_id, DagRun.run_id == dag_run_id)
    return found[0] if found else None


def _releases(*conditions: Any, limit: int = RELEASES_MAX) -> list[AirflowRelease]:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        query = select(DagRun).where(*conditions).order_by(DagRun.run_after.desc()).limit(limit)
        runs = list(session.scalars(query).unique())
        tasks = _tasks(session, runs) if runs else {}
        return [
            AirflowRelease(
                dag_id=run.dag_id,
                dag_run_id=run.run_id,
                state=str(run.state),
                conf=dict(run.conf) if isinstance(run.conf, dict) else {},
                started_at=run.start_date or run.queued_at,
                ended_at=run.end_date,
                note=run.note or "",
                started_by=run.triggering_user_name or "",
                tasks=tuple(tasks.get((run.dag_id, run.run_id), ())),
            )
            for run in runs
        ]


def _tasks(session: Any, runs: Sequence[Any]) -> dict[tuple[str, str], list[TaskState]]:
    from airflow.models.taskinstance import TaskInstance as Row
    from sqlalchemy import select

    columns = (Row.dag_id, Row.run_id, Row.task_id, Row.state, Row.queued_dttm, Row.start_date, Row.end_date, Row.pool)
    dag_ids, run_ids = {run.dag_id for run in runs}, {run.run_id for run in runs}
    query = select(*columns).where(Row.dag_id.in_(dag_ids), Row.run_id.in_(run_ids), Row.task_id.in_(STEPS))
    found: dict[tuple[str, str], list[TaskState]] = {}
    for dag_id, run_id, task_id, state, queued_at, started_at, ended_at, pool in session.execute(query):
        task = TaskState(
            task_id=task_id, state=state and str(state), queued_at=queued_at, started_at=started_at,
            ended_at=ended_at, pool=pool,
        )  # fmt: skip
        found.setdefault((dag_id, run_id), []).append(task)
    for tasks in found.values():
        tasks.sort(key=lambda task: list(STEPS).index(task.task_id))
    return found


def waiting_for_measurement(releases: Iterable[AirflowRelease]) -> list[AirflowRelease]:
    """Return the releases with a task that waits for the measuring slot, the first in the queue first."""
    waiting = [
        (task.queued_at or release.started_at or datetime.now(UTC), release.dag_run_id, release)
        for release in releases
        for task in release.tasks
        if task.state in _WAITING and task.task_id in ("parity_latency", "tune") and task.pool != "default_pool"
    ]
    return [release for _, _, release in sorted(waiting, key=lambda one: one[:2])]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchState:
    """State of the watches. `triggerer_at` is the newest heartbeat of a triggerer, which polls MLflow.

    `paused` are the ids of the paused ones, and `missing_pools` the pools of tasks that do not exist.
    """

    exists: bool
    paused: tuple[str, ...]
    last_run_at: datetime | None
    triggerer_at: datetime | None
    missing_pools: tuple[str, ...]


def watch_state() -> WatchState:
    """Return the state of the watches and of the pools."""
    from airflow.jobs.job import Job
    from airflow.models.dag import DagModel, DagTag
    from airflow.models.dagrun import DagRun
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy import func, select

    pools = {placement.pool(kind) for kind in placement.KINDS}
    with create_session() as session:
        watches = select(DagModel.dag_id, DagModel.is_paused).join(DagTag, DagTag.dag_id == DagModel.dag_id)
        query = watches.where(DagTag.name == DagRole.WATCH, DagModel.is_stale.is_(False))
        paused: dict[str, bool] = dict(session.execute(query).tuples().all())
        ran = session.scalar(select(func.max(DagRun.start_date)).where(DagRun.dag_id.in_(paused)))
        triggerer = select(func.max(Job.latest_heartbeat)).where(Job.job_type == "TriggererJob", Job.state == "running")
        return WatchState(
            exists=bool(paused),
            paused=tuple(sorted(dag_id for dag_id, is_paused in paused.items() if is_paused)),
            last_run_at=ran,
            triggerer_at=session.scalar(triggerer),
            missing_pools=tuple(sorted(pools - set(session.scalars(select(Pool.pool).where(Pool.pool.in_(pools)))))),
        )
