"""Model of a million releases and ten thousand workers, from the counts of a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_onnx.defaults import RELEASES_ACTIVE_MAX
from bench.scale.figures import added

RUNS, WORKERS = 1_000_000, 10_000
WEEK_S, YEAR_S = 7 * 86_400.0, 365 * 86_400.0
RATES = (RUNS / YEAR_S, RUNS / WEEK_S)
# Airflow's `[workers] min_heartbeat_interval`: interval of a running task's requests to the API server.
HEARTBEAT_S = 5.0
LINK_BYTES_PER_S = 10e9 / 8
# Redis's own default, and that of docker-compose.yaml for PostgreSQL.
REDIS_CLIENTS_MAX, POSTGRES_CONNECTIONS_MAX = 10_000, 200
FIRST, LARGE, LAST = "releases_per_hour_w1", "moved_over_artifact", "releases_per_hour_w4"
SMALL = ("releases_per_hour_w1", "releases_per_hour_w2", "releases_per_hour_w4")
NEEDED = (*SMALL, LARGE)

SERVICES = {
    "airflow-api-server": "Airflow's API server",
    "airflow-scheduler": "scheduler",
    "mlflow": "MLflow",
    "postgres": "PostgreSQL",
    "minio": "MinIO",
}

_WRITTEN = ("/inserted", "/updated", "/deleted")

Entry = Mapping[str, Any]
Counts = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Counts of a release of a small and of a large model, of an idle deployment, and of a further worker."""

    small: dict[str, float]
    large: dict[str, float]
    small_task_s: dict[str, float]
    large_task_s: dict[str, float]
    idle: dict[str, float]
    each_worker: dict[str, float]
    connections: dict[str, float]
    connections_each_worker: dict[str, float]


@dataclass(frozen=True, slots=True)
class Resource:
    """Limited resource; `needs` is the number needed for a million a year, a week, and with many workers."""

    name: str
    one: str
    does_per_s: float
    needs: tuple[float, float, float]


def measured(entries: Sequence[Entry]) -> Measured:
    """Return the counts of the results, which must contain all of `NEEDED`."""
    of = {entry["name"]: entry["detail"] for entry in entries}
    batches = [of[name] for name in SMALL]
    few, many = of[FIRST], of[LAST]
    more = many["workers"] - few["workers"]
    idle, later = _with_sums(few["idle"]["rates"]), _with_sums(many["idle"]["rates"])
    connections, later_connections = _connected(few), _connected(many)
    slot = {"worker/slot_s": few["of_each_release"]["worker/slot_s"]}
    return Measured(
        small=_with_sums(_mean([batch["of_each_release"] for batch in batches]) | slot),
        large=_with_sums(of[LARGE]["of_each_release"]),
        # With one worker no other task competes for a processor.
        small_task_s=few["task_s"],
        large_task_s=of[LARGE]["task_s"],
        idle=idle,
        each_worker=_slope(idle, later, more),
        connections=connections,
        connections_each_worker=_slope(connections, later_connections, more),
    )


def _connected(detail: Mapping[str, Any]) -> dict[str, float]:
    """Return the largest number of connections, idle or under load."""
    idle, load = detail["idle"]["connections"], detail["connections_max"]
    return {name: float(max(idle.get(name, 0), load.get(name, 0))) for name in idle.keys() | load.keys()}


def _slope(few: Counts, many: Counts, more: int) -> dict[str, float]:
    return {name: (many.get(name, 0.0) - few.get(name, 0.0)) / more for name in few.keys() | many.keys()}


def _mean(each: Sequence[Counts]) -> dict[str, float]:
    names = {name for one in each for name in one}
    return {name: sum(one.get(name, 0.0) for one in each) / len(each) for name in names}


def _with_sums(counts: Counts) -> dict[str, float]:
    """Add the sums of other counts."""
    found = dict(counts)
    for name in ("airflow", "celery", "mlflow"):
        # Without the catalogue's tables, which PostgreSQL writes when it analyses.
        tables = {key: number for key, number in counts.items() if key.startswith(f"table/{name}/")}
        found[f"rows_written/{name}"] = sum(number for key, number in tables.items() if key.endswith(_WRITTEN))
        found[f"growth_bytes/{name}"] = sum(number for key, number in tables.items() if key.endswith("/size_bytes"))
    found["redis/moved_bytes"] = counts.get("redis/in_bytes", 0.0) + counts.get("redis/out_bytes", 0.0)
    found["minio/moved_bytes"] = counts.get("minio/received_bytes", 0.0) + counts.get("minio/sent_bytes", 0.0)
    return found


def resources(found: Measured) -> list[Resource]:
    """Return the limited resources, the scarcest first with a million a week on ten thousand workers.

    Each worker is then always busy with one task. Its heartbeats are added at the mean cost of a request.
    """
    return sorted(_rates(found) + _processors(found) + _connections(found), key=lambda one: one.needs[2], reverse=True)


def _rates(found: Measured) -> list[Resource]:
    """Return the resources that a release uses for a time, or an amount of."""
    measuring_s, slot_s = found.small_task_s["parity_latency"], found.small["worker/slot_s"]
    bytes_s = found.large["minio/moved_bytes"] / LINK_BYTES_PER_S
    year, week = (rate * slot_s / RELEASES_ACTIVE_MAX for rate in RATES)
    active = (year, week, WORKERS / RELEASES_ACTIVE_MAX)
    limit = f"{RELEASES_ACTIVE_MAX} at once, as it is set"
    return [
        Resource("measuring", "slot, one host each", 1 / measuring_s, _needs(measuring_s)),
        Resource("MinIO, releases of 113 MB", "link of 10 Gbit/s", 1 / bytes_s, _needs(bytes_s)),
        Resource("DAG runs of `release_onnx`", limit, RELEASES_ACTIVE_MAX / slot_s, active),
    ]


def _processors(found: Measured) -> list[Resource]:
    requests = added(found.small, "airflow/request/")
    resources = []
    for service, name in SERVICES.items():
        each, always = found.small[f"cpu_s/{service}"], found.idle.get(f"cpu_s/{service}", 0.0)
        # A heartbeat is one request, and writes one row.
        beats = WORKERS / HEARTBEAT_S * each / requests if service in ("airflow-api-server", "postgres") else 0.0
        resources.append(Resource(name, "processor", 1 / each, _needs(each, always, beats)))
    return resources


def _needs(each: float, always: float = 0.0, workers: float = 0.0) -> tuple[float, float, float]:
    """Return the need at both rates, above a constant one, and with many workers."""
    year, week = (rate * each + always for rate in RATES)
    return year, week, week + workers


def _connections(found: Measured) -> list[Resource]:
    """Return the connections over the limit of one server."""
    clients = found.connections["redis"]
    sessions = sum(number for name, number in found.connections.items() if name != "redis")
    return [
        _server("Redis", "clients", REDIS_CLIENTS_MAX, clients, found.connections_each_worker["redis"]),
        _server(
            "PostgreSQL",
            "connections",
            POSTGRES_CONNECTIONS_MAX,
            sessions,
            found.connections_each_worker["airflow-worker celery"],
        ),
    ]


def _server(name: str, unit: str, limit: int, first: float, more: float) -> Resource:
    few, many = first / limit, (first + WORKERS * more) / limit
    return Resource(name, f"server of {limit} {unit}", 0.0, (few, few, many))
