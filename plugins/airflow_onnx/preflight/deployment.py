"""The parts of a deployment that its DAGs use: connections, buckets, pools and watched experiments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_onnx import defaults
from airflow_onnx.dag_roles import RELEASING, DagRole, dag_ids
from airflow_onnx.deployment import settings
from airflow_onnx.errors import WatchRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class DagFacts:
    """One DAG in Airflow's database.

    `params` are the defaults of its parameters, and `pools` the largest number of slots of a task, by pool.
    """

    dag_id: str
    is_watch: bool
    is_paused: bool
    has_import_errors: bool
    params: Mapping[str, Any] = field(default_factory=dict)
    pools: Mapping[str, int] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """Return a parameter as a text, empty if it is not set."""
        return str(self.params.get(name) or "").strip()


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of releases in a store. An empty bucket stands for none."""

    conn_id: str
    bucket: str
    prefix: str

    @property
    def uri(self) -> str:
        """The folder as ``s3://bucket/prefix``."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


@dataclass(frozen=True, slots=True)
class Deployment:
    """The DAGs of releases and the watches that are checked.

    :param experiments: more experiments to check.
    :param known: the ids of all DAGs of releases.
    """

    releases: tuple[DagFacts, ...]
    watches: tuple[DagFacts, ...]
    experiments: tuple[str, ...] = ()
    known: frozenset[str] = frozenset()

    @property
    def mlflow_conn_ids(self) -> dict[str, tuple[str, ...]]:
        """The DAGs by the connection to MLflow."""
        pairs = [(dag.text("mlflow_conn_id") or defaults.MLFLOW_CONN_ID, dag.dag_id) for dag in self._all]
        return _grouped(pairs) or {settings.pages_mlflow_conn_id(): ()}

    @property
    def folders(self) -> dict[Folder, tuple[str, ...]]:
        """The DAGs by the folder of their releases, with those of the parameters that routes give them."""
        pairs = []
        for dag in self.releases:
            given = [dag.params, *({**dag.params, **(route.get("params") or {})} for route in self._routes(dag.dag_id))]
            found = [_folder(one) for one in given]
            # A route may give the bucket that the DAG lacks.
            named = [one for one in found if one.bucket] or found
            pairs += [(folder, dag.dag_id) for folder in named]
        return _grouped(pairs) or {Folder(defaults.S3_CONN_ID, settings.bucket(), settings.prefix()): ()}

    def routed_buckets(self, dag_id: str) -> list[str]:
        """Return the buckets that routes give to the releases of a DAG."""
        given = [str((route.get("params") or {}).get("bucket") or "") for route in self._routes(dag_id)]
        return sorted({*filter(None, given)})

    @property
    def pools(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """The largest number of slots of a task, and the DAGs, by pool."""
        found = _grouped([(pool, dag.dag_id) for dag in self._all for pool in dag.pools])
        return {
            pool: (max(dag.pools.get(pool, 0) for dag in self._all), users) for pool, users in sorted(found.items())
        }

    @property
    def _all(self) -> tuple[DagFacts, ...]:
        return (*self.releases, *self.watches)

    def _routes(self, dag_id: str) -> list[Mapping[str, Any]]:
        return [route for watch in self.watches for route in routes(watch) if route.get("dag_id") == dag_id]


def _folder(params: Mapping[str, Any]) -> Folder:
    conn_id, bucket, prefix = (str(params.get(name) or "").strip() for name in ("s3_conn_id", "bucket", "prefix"))
    return Folder(conn_id or defaults.S3_CONN_ID, bucket, prefix.strip("/"))


def routes(watch: DagFacts) -> list[Mapping[str, Any]]:
    """Return the routes of a watch. Each is checked when the watch starts a release."""
    found = watch.params.get("routes")
    return [route for route in found if isinstance(route, dict)] if isinstance(found, list) else []


def read_deployment(wanted: Sequence[str] = (), experiments: Sequence[str] = ()) -> Deployment:
    """Read the DAGs from Airflow's database.

    :param wanted: ids of DAGs. Empty: all. A watch brings the DAGs of its routes, and a DAG the watches that
        lead to it.
    :param experiments: more experiments to check.
    :raises WatchRefused: if one of the DAGs does not exist, or is of another kind.
    """
    releases, watches = dag_ids(*RELEASING), dag_ids(DagRole.WATCH)
    known = {*releases, *watches}
    if unknown := [one for one in wanted if one not in known]:
        problem = f"is not a DAG of releases or a watch; Airflow has {', '.join(sorted(known)) or 'none'}"
        raise WatchRefused(f"The DAG {unknown[0]!r:.80}", problem, "Correct --dag-id.", code="no_watch")
    facts = {one.dag_id: one for one in _read({one: one in watches for one in known})}
    if wanted:
        led = {str(route.get("dag_id")) for one in wanted if one in watches for route in routes(facts[one])}
        releases = [one for one in releases if one in led.union(wanted)]
        watches = [
            one
            for one in watches
            if one in wanted or any(route.get("dag_id") in wanted for route in routes(facts[one]))
        ]
    return Deployment(
        tuple(facts[one] for one in releases),
        tuple(facts[one] for one in watches),
        tuple(experiments),
        frozenset(dag_ids(*RELEASING)),
    )


def _read(is_watch: Mapping[str, bool]) -> Iterable[DagFacts]:
    from airflow.models.dag import DagModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    columns = DagModel.dag_id, DagModel.is_paused, DagModel.has_import_errors
    with create_session() as session:
        rows = list(session.execute(select(*columns).where(DagModel.dag_id.in_(is_watch))))
    for dag_id, is_paused, has_import_errors in rows:
        dag = SerializedDagModel.get_dag(dag_id)
        pools: dict[str, int] = {}
        for task in dag.task_dict.values() if dag else ():
            pools[task.pool] = max(pools.get(task.pool, 0), task.pool_slots)
        yield DagFacts(
            dag_id=dag_id,
            is_watch=is_watch[dag_id],
            is_paused=bool(is_paused),
            has_import_errors=bool(has_import_errors),
            params=dict(dag.params.dump()) if dag else {},
            pools=pools,
        )


def _grouped(pairs: Iterable[tuple[Any, str]]) -> dict[Any, tuple[str, ...]]:
    found: dict[Any, list[str]] = {}
    for key, dag_id in pairs:
        if dag_id not in (users := found.setdefault(key, [])):
            users.append(dag_id)
    return {key: tuple(users) for key, users in found.items()}
