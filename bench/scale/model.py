"""What a million releases and ten thousand workers would ask of each service, from what was counted of a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.scale.workers import added
from onnx_release.limits import RELEASES_ACTIVE_MAX
from stack.layout import REPO

PAGE = REPO / "docs" / "scaling.md"
RUNS, WORKERS = 1_000_000, 10_000
WEEK_S, YEAR_S = 7 * 86_400.0, 365 * 86_400.0
# Airflow's `[workers] min_heartbeat_interval`: a running task's supervisor asks the API server this often.
HEARTBEAT_S = 5.0
LINK_BYTES_PER_S = 10e9 / 8
# Redis's own default, and that of docker-compose.yaml for PostgreSQL.
REDIS_CLIENTS_MAX, POSTGRES_CONNECTIONS_MAX = 10_000, 200
FIRST, LARGE, LAST = "releases_per_hour_w1", "moved_over_artifact", "releases_per_hour_w4"
SMALL = ("releases_per_hour_w1", "releases_per_hour_w2", "releases_per_hour_w4")
NEEDED = (*SMALL, LARGE)

Entry = Mapping[str, Any]
Counts = Mapping[str, float]

ASKED = (
    ("requests to MLflow", "mlflow/request/", 1),
    ("requests of tasks to Airflow's API server", "airflow/request/", 1),
    ("transactions in Airflow's database", "postgres/airflow/transactions", 1),
    ("rows written there", "postgres/airflow/rows_written", 1),
    ("growth of it, kB", "postgres/airflow/size_bytes", 1e3),
    ("transactions in MLflow's database", "postgres/mlflow/transactions", 1),
    ("rows written there ", "postgres/mlflow/rows_written", 1),
    ("growth of it, kB ", "postgres/mlflow/size_bytes", 1e3),
    ("transactions in Celery's database", "postgres/celery/transactions", 1),
    ("write-ahead log of all three, kB", "postgres/wal_bytes", 1e3),
    ("commands in Redis", "redis/command/", 1),
    ("requests to MinIO", "minio/request/", 1),
    ("bytes in and out of MinIO, MB", "minio/moved_bytes", 1e6),
    ("processor of MLflow, s", "cpu_s/mlflow", 1),
    ("processor of the API server, s", "cpu_s/airflow-api-server", 1),
    ("processor of the scheduler, s", "cpu_s/airflow-scheduler", 1),
    ("processor of PostgreSQL, s", "cpu_s/postgres", 1),
    ("processor of Redis, s", "cpu_s/redis", 1),
    ("processor of MinIO, s", "cpu_s/minio", 1),
    ("processor of the workers, s", "cpu_s/airflow-worker", 1),
    ("tasks on a worker", "worker/ended", 1),
    ("a worker's slot, s", "worker/slot_s", 1),
)
IDLE = (
    ("requests to MLflow", "mlflow/request/"),
    ("requests to Airflow's API server", "airflow/request/"),
    ("transactions in Airflow's database", "postgres/airflow/transactions"),
    ("transactions in Celery's database", "postgres/celery/transactions"),
    ("commands in Redis", "redis/command/"),
    ("bytes in and out of Redis", "redis/moved_bytes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the bench counted: of a release of a small and of a large model, with nothing to do, and a worker more."""

    small: dict[str, float]
    large: dict[str, float]
    small_task_s: dict[str, float]
    large_task_s: dict[str, float]
    idle: dict[str, float]
    each_worker: dict[str, float]
    held: dict[str, float]
    held_each_worker: dict[str, float]


@dataclass(frozen=True, slots=True)
class Resource:
    """Something of which one may not be enough: `needs` is how many, for a million a year, a week, and many workers."""

    name: str
    one: str
    does_per_s: float
    needs: tuple[float, float, float]


def measured(entries: Sequence[Entry]) -> Measured:
    """Return what the results hold, which must be all of `NEEDED`."""
    of = {entry["name"]: entry["detail"] for entry in entries}
    batches = [of[name] for name in SMALL]
    few, many = of[FIRST], of[LAST]
    more = many["workers"] - few["workers"]
    idle, later = _with_sums(few["idle"]["rates"]), _with_sums(many["idle"]["rates"])
    held, held_later = _connected(few), _connected(many)
    return Measured(
        small=_with_sums(_mean([batch["of_each_release"] for batch in batches])),
        large=_with_sums(of[LARGE]["of_each_release"]),
        small_task_s=_mean([batch["task_s"] for batch in batches]),
        large_task_s=of[LARGE]["task_s"],
        idle=idle,
        each_worker=_slope(idle, later, more),
        held=held,
        held_each_worker=_slope(held, held_later, more),
    )


def _connected(detail: Mapping[str, Any]) -> dict[str, float]:
    """Return the most connections that were seen, with nothing to do or under load."""
    idle, load = detail["idle"]["held"], detail["held_max"]
    return {name: float(max(idle.get(name, 0), load.get(name, 0))) for name in idle.keys() | load.keys()}


def _slope(few: Counts, many: Counts, more: int) -> dict[str, float]:
    return {name: (many.get(name, 0.0) - few.get(name, 0.0)) / more for name in few.keys() | many.keys()}


def _mean(each: Sequence[Counts]) -> dict[str, float]:
    names = {name for one in each for name in one}
    return {name: sum(one.get(name, 0.0) for one in each) / len(each) for name in names}


def _with_sums(counts: Counts) -> dict[str, float]:
    """Add what is a sum of others."""
    found = dict(counts)
    for name in ("airflow", "celery", "mlflow"):
        found[f"postgres/{name}/rows_written"] = sum(
            counts.get(f"postgres/{name}/rows_{done}", 0.0) for done in ("inserted", "updated", "deleted")
        )
    found["redis/moved_bytes"] = counts.get("redis/in_bytes", 0.0) + counts.get("redis/out_bytes", 0.0)
    found["minio/moved_bytes"] = counts.get("minio/received_bytes", 0.0) + counts.get("minio/sent_bytes", 0.0)
    return found


def resources(found: Measured) -> list[Resource]:
    """Return what could run out, the scarcest first by the third load: a million a week on ten thousand workers.

    Each worker is then busy all the time with one task: its heartbeats come on top, at the mean cost of a request.
    """
    small, per_worker = found.small, found.each_worker
    requests = added(small, "airflow/request/")
    beats = WORKERS / HEARTBEAT_S

    def needs(each: float, idle: float, worker: float, beat: float = 0.0) -> tuple[float, float, float]:
        year, week = (RUNS / seconds * each + idle for seconds in (YEAR_S, WEEK_S))
        return year, week, week + WORKERS * worker + beats * beat

    def processor(name: str, one: str, service: str, beat: float = 0.0) -> Resource:
        key = f"cpu_s/{service}"
        each = small.get(key, 0.0)
        # What a worker adds with nothing to do is within the noise of a service that it does not speak to.
        worker = max(0.0, per_worker.get(key, 0.0)) if service in ("redis", "postgres", "airflow-api-server") else 0.0
        return Resource(name, one, 1 / each if each else 0.0, needs(each, found.idle.get(key, 0.0), worker, beat))

    beat_s = small["cpu_s/airflow-api-server"] / requests
    measuring_s, large_bytes = found.small_task_s["parity_latency"], found.large["minio/moved_bytes"]
    busy = WORKERS / RELEASES_ACTIVE_MAX
    clients = [_with_workers(found, name) for name in found.held if name == "redis"]
    sessions = [_with_workers(found, name) for name in found.held if name != "redis"]
    return sorted(
        [
            Resource("measuring", "slot, one host each", 1 / measuring_s, needs(measuring_s, 0.0, 0.0)),
            processor("Airflow's API server", "process of one processor", "airflow-api-server", beat_s),
            processor("scheduler", "process of one processor", "airflow-scheduler"),
            processor("MLflow", "process of one processor", "mlflow"),
            processor("PostgreSQL", "processor", "postgres", small["cpu_s/postgres"] / requests),
            processor("Redis", "processor (it uses one)", "redis"),
            Resource(
                "DAG runs of `release_onnx`",
                f"{RELEASES_ACTIVE_MAX} at once, as it is set",
                RELEASES_ACTIVE_MAX / small["worker/slot_s"],
                (*(need / RELEASES_ACTIVE_MAX for need in needs(small["worker/slot_s"], 0.0, 0.0)[:2]), busy),
            ),
            _held("Redis", "clients", REDIS_CLIENTS_MAX, clients),
            _held("PostgreSQL", "connections", POSTGRES_CONNECTIONS_MAX, sessions),
            Resource(
                "MinIO, releases of 113 MB",
                "link of 10 Gbit/s",
                LINK_BYTES_PER_S / large_bytes,
                needs(large_bytes / LINK_BYTES_PER_S, 0.0, 0.0),
            ),
        ],
        key=lambda one: one.needs[2],
        reverse=True,
    )


def _with_workers(found: Measured, name: str) -> tuple[float, float]:
    few = found.held[name]
    return few, few + WORKERS * max(0.0, found.held_each_worker.get(name, 0.0))


def _held(name: str, what: str, limit: int, held: Sequence[tuple[float, float]]) -> Resource:
    few, many = (sum(one) / limit for one in zip(*held, strict=True)) if held else (0.0, 0.0)
    return Resource(name, f"server of {limit} {what}", 0.0, (few, few, many))


def tables(entries: Sequence[Entry]) -> str:
    """Return the page's tables: what a release asks for, what idleness costs, and what is needed at scale."""
    found = measured(entries)
    return "\n\n".join((_asked(found), _idle(found), _scarce(found)))


def _asked(found: Measured) -> str:
    rows = ["| one release asks for | small model | 113 MB | a million small ones |", "|---|---|---|---|"]
    for name, prefix, unit in ASKED:
        small, large = (added(counts, prefix) / unit for counts in (found.small, found.large))
        rows.append(f"| {name.strip()} | {short(small)} | {short(large)} | {short(small * RUNS)} |")
    measuring = [each["parity_latency"] for each in (found.small_task_s, found.large_task_s)]
    rows.append(
        f"| of it measuring, s | {short(measuring[0])} | {short(measuring[1])} | {short(measuring[0] * RUNS)} |"
    )
    return "\n".join(rows)


def _idle(found: Measured) -> str:
    rows = [
        "| a second, with nothing to do | one worker | each worker more | 10 000 workers |",
        "|---|---|---|---|",
    ]
    for name, prefix in IDLE:
        one, more = added(found.idle, prefix), added(found.each_worker, prefix)
        rows.append(f"| {name} | {short(one)} | {short(more)} | {short(one + WORKERS * more)} |")
    for key in sorted(found.held_each_worker):
        one, more = found.held.get(key, 0.0), found.held_each_worker[key]
        where = "Redis" if key == "redis" else "PostgreSQL: {} to `{}`".format(*key.split())
        rows.append(f"| connections to {where} | {short(one)} | {short(more)} | {short(one + WORKERS * more)} |")
    return "\n".join(rows)


def _scarce(found: Measured) -> str:
    rows = [
        "| of | one | does, releases/s | needed: a million a year | a week | a week, 10 000 workers |",
        "|---|---|---|---|---|---|",
    ]
    for one in resources(found):
        does = short(one.does_per_s) if one.does_per_s else ""
        rows.append(f"| {one.name} | {one.one} | {does} | {' | '.join(short(need) for need in one.needs)} |")
    return "\n".join(rows)


def short(number: float) -> str:
    """Return the number with two digits that count, whole from 100 on, and with k, M or G from 10 000 on."""
    for limit, word in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(number) >= limit:
            return f"{number / (1e3 if word == ' k' else limit):.3g}{word}"
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.2g}"
