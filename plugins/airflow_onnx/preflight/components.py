"""Checks of Airflow itself: its DAGs of releases, pools, components and this package's plugin."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from airflow_onnx.deployment import buckets
from airflow_onnx.preflight.checks import Subject, failure, warning
from airflow_onnx.preflight.clock import database_clock
from airflow_onnx.preflight.deployment import DagFacts, Deployment, routes
from onnx_release.text import shorten

PLUGIN = "airflow_onnx"
CONNECTION_TYPES = ("mlflow", "s3store")
# Airflow's names of its components, with the command that starts each.
COMPONENTS = {
    "scheduler": "airflow scheduler",
    "triggerer": "airflow triggerer",
    "dag_processor": "airflow dag-processor",
}
_BUSY = ("running", "queued")


def check_airflow(subject: Subject) -> None:
    """Make the checks of the components, the plugin and the database."""
    # One query for all of them.
    from airflow.api.common.airflow_health import get_airflow_health

    health: dict[str, Any] = {}

    def component(name: str) -> str:
        if not health:
            health.update(get_airflow_health())
        return _component(name, health.get(name) or {})

    for name in COMPONENTS:
        subject.check(f"airflow.{name}", lambda name=name: component(name))  # type: ignore[misc]
    subject.check("airflow.plugin", _plugin)
    subject.check("airflow.provider", _provider)
    subject.check("clock.database", database_clock)


def _component(name: str, health: Mapping[str, Any]) -> str:
    beat = health.get(f"latest_{name}_heartbeat")
    word = name.replace("_", " ")
    if health.get("status") == "healthy" and beat:
        age_s = (datetime.now(UTC) - datetime.fromisoformat(beat)).total_seconds()
        return f"heartbeat {max(0, age_s):.0f} s ago"
    found = f"no {word} has a fresh heartbeat, the last at {beat}" if beat else f"no {word} has ever run"
    raise failure(found, f"Start it: {COMPONENTS[name]}.")


def _plugin() -> str:
    from airflow import plugins_manager

    plugins, errors = plugins_manager._get_plugins()
    ours = [str(source) for source in errors if PLUGIN in str(source)]
    if ours:
        text = shorten(errors[ours[0]], 200)
        raise failure(f"the plugin is not loaded: {text}", "Correct the reason, and restart Airflow's components.")
    count = sum(plugin.name == PLUGIN for plugin in plugins)
    if not count:
        action = "Install the package, or put its folder into Airflow's plugins folder. Then restart its components."
        raise failure("the plugin is not loaded: pages, links and the creation of the pool are missing", action)
    return "loaded"


def _provider() -> str:
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    known = ProvidersManagerTaskRuntime().hooks
    missing = [name for name in CONNECTION_TYPES if name not in known]
    if missing:
        action = "Install the wheel, or put the plugins folder on PYTHONPATH before Airflow starts."
        raise warning(f"Airflow has no form for the type {' and '.join(missing)}", action)
    return f"the types {' and '.join(CONNECTION_TYPES)} have forms"


def check_dag(subject: Subject, dag: DagFacts, known: Collection[str], routed: Collection[str] = ()) -> None:
    """Make the checks of one DAG.

    :param known: the ids of all DAGs of releases.
    :param routed: the buckets that routes give to its releases.
    """
    subject.check("dag.parsed", lambda: _parsed(dag))
    subject.check("watch.unpaused" if dag.is_watch else "dag.unpaused", lambda: _unpaused(dag))
    if dag.is_watch:
        subject.check("watch.routes", lambda: _routes(dag, known))
    elif not dag.text("bucket"):
        subject.check("dag.bucket", _no_bucket)
    if refused := sorted(set(routed).difference(buckets.allowed(dag.text("bucket")))):
        subject.check("dag.bucket_allowed", lambda: _not_allowed(refused))


def _parsed(dag: DagFacts) -> str:
    if dag.has_import_errors:
        action = f"Read it: airflow dags list-import-errors, or the page of {dag.dag_id} in Airflow."
        raise failure("its file has an import error, so Airflow runs an older state of it", action)
    return "no import error"


def _unpaused(dag: DagFacts) -> str:
    if dag.is_paused:
        effect = "finished training runs are not released" if dag.is_watch else "its DAG runs stay queued"
        raise failure(f"paused: {effect}", f"Run: airflow dags unpause {dag.dag_id}.")
    return "on"


def _routes(dag: DagFacts, known: Collection[str]) -> str:
    targets = sorted({str(route.get("dag_id")) for route in routes(dag)})
    if missing := [one for one in targets if one not in known]:
        raise failure(
            f"routes lead to DAGs that Airflow does not have: {', '.join(missing)}",
            "Correct release_dag_id or the routes, or add the DAG.",
        )
    return f"to {', '.join(targets)}" if targets else "none"


def _no_bucket() -> str:
    raise warning(
        "no default bucket: a release without the parameter bucket is refused",
        "Set it in release_dag(bucket=…), or in the option [onnx_release] bucket.",
    )


def _not_allowed(refused: Sequence[str]) -> str:
    raise failure(
        f"routes send its releases to buckets that the deployment does not allow: {', '.join(refused)}",
        "Add them to the option [onnx_release] release_buckets.",
    )


def check_dags_exist(subject: Subject, deployment: Deployment) -> None:
    """Make the checks of all DAG files together: import errors of files whose DAG Airflow never had."""
    subject.check("dag.exists", lambda: _exists(deployment))
    subject.check("dag.parsed", _import_errors)


def _exists(deployment: Deployment) -> str:
    if not deployment.releases:
        action = "Add a DAG file that calls release_dag: see docs/own-dags.md. A new file is read within some minutes."
        raise failure("Airflow has no DAG of releases", action)
    watches = len(deployment.watches)
    return f"{len(deployment.releases)} with releases, {watches} {'watch' if watches == 1 else 'watches'}"


def _import_errors() -> str:
    """Return the count of import errors of other packages."""
    from airflow.models.errors import ParseImportError
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        query = select(ParseImportError.filename, ParseImportError.stacktrace)
        rows = [(str(name or "?"), str(trace or "")) for name, trace in session.execute(query)]
    ours = {name: trace for name, trace in rows if PLUGIN in trace or "onnx_release" in trace}
    if ours:
        name, trace = next(iter(ours.items()))
        last = shorten((trace.strip().splitlines() or [""])[-1], 300)
        more = f", and {len(ours) - 1} more files" if len(ours) > 1 else ""
        raise failure(f"{name} has an import error: {last}{more}", "Run: airflow dags list-import-errors.")
    return f"no import error ({len(rows)} of other packages)" if rows else "no import error"


def check_pool(subject: Subject, name: str, slots: int, known: Collection[str]) -> None:
    """Make the check of one pool.

    :param slots: the largest number of slots of a task.
    """
    subject.check("pool.exists", lambda: _pool(name, slots, known))


def _pool(name: str, slots: int, known: Collection[str]) -> str:
    from airflow.models.pool import Pool
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import func, select

    with create_session() as session:
        pool = session.scalar(select(Pool.slots).where(Pool.pool == name))
        query = select(TaskInstance.dag_id, func.count()).where(
            TaskInstance.pool == name, TaskInstance.state.in_(_BUSY)
        )
        rows = session.execute(query.group_by(TaskInstance.dag_id)).all()
    users: dict[str, int] = {row[0]: row[1] for row in rows}
    if pool is None:
        raise failure(
            f"the pool {name} does not exist: its tasks stay scheduled for ever",
            f'Run: airflow pools set {name} {slots} "Tasks of the ONNX release".',
        )
    if 0 <= pool < slots:
        raise failure(
            f"the pool {name} has {pool} slots, and a task of a release needs {slots}",
            f'Run: airflow pools set {name} {slots} "Tasks of the ONNX release".',
        )
    return f"{name}: {'unlimited' if pool < 0 else pool} {'slot' if pool == 1 else 'slots'}, {_users(users, known)}"


def _users(users: Mapping[str, int], known: Collection[str]) -> str:
    """Return the tasks that have or wait for a slot. Other DAGs are counted without their ids."""
    ours = [f"{count} of {dag_id}" for dag_id, count in sorted(users.items()) if dag_id in known]
    others = sum(count for dag_id, count in users.items() if dag_id not in known)
    parts = ours + ([f"{others} of other DAGs"] if others else [])
    return f"used now by {', '.join(parts)}" if parts else "not in use now"
