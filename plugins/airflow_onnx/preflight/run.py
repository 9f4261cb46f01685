"""The checks of a whole deployment, side by side and with a time limit for each subject."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any

from pydantic import AwareDatetime

from airflow_onnx.defaults import MLFLOW_CONN_ID
from airflow_onnx.preflight import components, watched, worker
from airflow_onnx.preflight.checks import Check, State, Subject
from airflow_onnx.preflight.clock import STORE_MAX_S, STORE_WARN_S
from airflow_onnx.preflight.deployment import Deployment
from airflow_onnx.preflight.mlflow_probe import MlflowProbe
from airflow_onnx.preflight.store import StoreProbe
from onnx_release.records.base import Record

# Each call of a subject has a limit of 10 s. A server that sends single bytes reaches none of these.
DEADLINE_S = 60.0
_ADDRESS_WITH_PASSWORD = re.compile(r"(://)[^/\s@]*@")
_HIDDEN = "***"


class Place(StrEnum):
    """The process that makes the checks."""

    COMMAND = "command"
    API_SERVER = "api-server"


class DeploymentReport(Record):
    """The checks of a deployment, as JSON.

    Attributes:
        schema_version: 1.
        checked_at: The time of the begin.
        seconds: The duration.
        host: The name of the host.
        place: The process: ``command``, or ``api-server`` for a check from the page.
        state: The worst state of a check.
        counts: The number of checks by state.
        checks: The checks, by subject.
    """

    schema_version: int = 1
    checked_at: AwareDatetime
    seconds: float
    host: str
    place: Place
    state: State
    counts: dict[str, int]
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    """The checks of one subject. Those of the database are made one after the other."""

    subject: Subject
    run: Callable[[Subject], None]
    of_database: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    def run_guarded(self) -> None:
        try:
            self.run(self.subject)
        except Exception as error:  # noqa: BLE001 - libraries and databases raise anything; the other subjects go on
            self.subject.add_error("check.ended", error)
        finally:
            self.ended.set()


def run_checks(deployment: Deployment, place: Place, deadline_s: float = DEADLINE_S) -> DeploymentReport:
    """Make all checks. No problem ends them early, and no secret is in the result."""
    _load_models()
    began, began_s = datetime.now(UTC), time.monotonic()
    jobs, hide = list(_jobs(deployment, place)), _hiding(_secrets(deployment))
    for job in jobs:
        job.subject.hide = hide
    for group in ([job for job in jobs if job.of_database], *([job] for job in jobs if not job.of_database)):
        threading.Thread(target=_run_all, args=(group,), daemon=True).start()
    for job in jobs:
        if not job.ended.wait(max(0.0, deadline_s - (time.monotonic() - began_s))):
            found = f"no end within {deadline_s:g} s"
            job.subject.add("check.ended", State.FAILED, found, "Check the network to this server, and its load.")
    checks = tuple(check for job in jobs for check in list(job.subject.checks))
    counts = {state.value: sum(check.state is state for check in checks) for state in State}
    worst = next((state for state in (State.FAILED, State.WARNING) if counts[state]), State.OK)
    return DeploymentReport(
        checked_at=began,
        seconds=round(time.monotonic() - began_s, 2),
        host=socket.gethostname(),
        place=place,
        state=worst,
        counts=counts,
        checks=checks,
    )


def _run_all(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        job.run_guarded()


def _load_models() -> None:
    """Import Airflow's models. SQLAlchemy's lock and Python's import locks block two threads that do it for ever."""
    import airflow.api.common.airflow_health  # noqa: F401
    from airflow.models import import_all_models
    from sqlalchemy.orm import configure_mappers

    import_all_models()
    configure_mappers()


def _jobs(deployment: Deployment, place: Place) -> Iterator[_Job]:
    known = deployment.known
    yield _Job(Subject("Airflow"), components.check_airflow, of_database=True)
    yield _Job(Subject("DAG files"), lambda subject: components.check_dags_exist(subject, deployment), of_database=True)
    for dag in (*deployment.releases, *deployment.watches):
        kind = "Watch" if dag.is_watch else "DAG"
        subject = Subject(f"{kind} {dag.dag_id}", [dag.dag_id])
        yield _Job(
            subject, partial(components.check_dag, dag=dag, known=known, routed=deployment.routed_buckets(dag.dag_id))
        )
    for pool, need in deployment.pools.items():
        check = partial(components.check_pool, name=pool, slots=need[0], known=known)
        yield _Job(Subject("Pools", need[1]), check, of_database=True)
    for conn_id, users in deployment.mlflow_conn_ids.items():
        yield _Job(Subject(f"MLflow ({conn_id})", users), _mlflow(deployment, conn_id))
    targets = []
    for folder, users in deployment.folders.items():
        subject = Subject(f"Store {folder.uri if folder.bucket else ''} ({folder.conn_id})".replace("  ", " "), users)
        if folder.bucket:
            targets.append(StoreProbe(folder.conn_id, folder.uri))
            yield _Job(subject, _store(targets[-1]))
        else:
            yield _Job(subject, lambda subject: subject.add("store.bucket", State.SKIPPED, "no bucket is set"))
    if place is Place.COMMAND:
        yield _Job(Subject("Staging"), lambda subject: worker.check_staging(subject, targets))
        yield _Job(Subject(f"Host {socket.gethostname()}"), worker.check_worker)
    else:
        reason = "the API server runs no task: run `airflow onnx-release check` on a worker"
        yield _Job(Subject("Workers"), lambda subject: subject.add("worker.packages", State.SKIPPED, reason))


def _mlflow(deployment: Deployment, conn_id: str) -> Callable[[Subject], None]:
    def run(subject: Subject) -> None:
        probe = MlflowProbe(conn_id)
        probe.run(subject)
        watches = [one for one in deployment.watches if (one.text("mlflow_conn_id") or MLFLOW_CONN_ID) == conn_id]
        patterns = [str(one) for watch in watches for one in watch.params.get("experiments") or []]
        if subject.passed("mlflow.read") and (watches or deployment.experiments):
            watched.check_experiments(subject, probe.rest, [*deployment.experiments, *patterns])

    return run


def _store(probe: StoreProbe) -> Callable[[Subject], None]:
    def run(subject: Subject) -> None:
        probe.run(subject)
        subject.check("clock.store", lambda: probe.clock().text(STORE_WARN_S, STORE_MAX_S), needs=["store.bucket"])

    return run


def _secrets(deployment: Deployment) -> Sequence[str]:
    """Return the secrets of the connections that are used, the longest first."""
    from airflow.sdk import BaseHook

    from airflow_onnx.deployment import settings

    conn_ids = {*deployment.mlflow_conn_ids, *(one.conn_id for one in deployment.folders), settings.staging_conn_id()}
    found: set[str] = set()
    for conn_id in conn_ids:
        try:
            conn = BaseHook.get_connection(conn_id)
            found |= {str(conn.password or ""), *_texts(conn.extra_dejson)}
        except Exception:  # noqa: BLE001, S112 - the check of the connection has the reason
            continue
    return sorted((one for one in found if len(one) >= 4), key=len, reverse=True)


def _texts(extra: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts of an extra whose keys name a secret."""
    for key, value in extra.items():
        if isinstance(value, Mapping):
            yield from _texts(value)
        elif isinstance(value, str) and re.search(r"secret|token|password|passwd|access_key|session", str(key), re.I):
            yield value


def _hiding(secrets: Sequence[str]) -> Callable[[str], str]:
    def hide(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, _HIDDEN)
        return _ADDRESS_WITH_PASSWORD.sub(rf"\1{_HIDDEN}@", text)

    return hide
