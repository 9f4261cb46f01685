"""Tables of docs/scaling.md."""

from __future__ import annotations

from collections.abc import Sequence

from bench.scale.figures import HOUR_S, added
from bench.scale.model import RUNS, WORKERS, Entry, Measured, measured, resources
from stack.layout import REPO

PAGE = REPO / "docs" / "scaling.md"

RELEASE = (
    ("requests to MLflow", "mlflow/request/", ""),
    ("requests of tasks to Airflow's API server", "airflow/request/", ""),
    ("transactions in the database `airflow`", "postgres/airflow/transactions", ""),
    ("transactions in `mlflow`", "postgres/mlflow/transactions", ""),
    ("transactions in `celery`", "postgres/celery/transactions", ""),
    ("rows written in `airflow`", "rows_written/airflow", ""),
    ("rows written in `mlflow`", "rows_written/mlflow", ""),
    ("growth of `airflow`", "growth_bytes/airflow", "B"),
    ("growth of `mlflow`", "growth_bytes/mlflow", "B"),
    ("write-ahead log", "postgres/wal_bytes", "B"),
    ("commands in Redis", "redis/command/", ""),
    ("requests to MinIO", "minio/request/", ""),
    ("bytes in and out of MinIO", "minio/moved_bytes", "B"),
    ("processor of the API server", "cpu_s/airflow-api-server", "s"),
    ("processor of the scheduler", "cpu_s/airflow-scheduler", "s"),
    ("processor of PostgreSQL", "cpu_s/postgres", "s"),
    ("processor of MLflow", "cpu_s/mlflow", "s"),
    ("processor of MinIO", "cpu_s/minio", "s"),
    ("processor of the workers", "cpu_s/airflow-worker", "s"),
    ("tasks on a worker", "worker/ended", ""),
    ("a worker's slot", "worker/slot_s", "s"),
)
# An idle worker sends no requests to the API server or MLflow: it only listens to Redis.
IDLE = (
    ("requests to MLflow (the trigger)", "mlflow/request/", False),
    ("transactions in `airflow`", "postgres/airflow/transactions", False),
    ("transactions in `mlflow`", "postgres/mlflow/transactions", False),
    ("commands in Redis", "redis/command/", True),
    ("bytes in and out of Redis", "redis/moved_bytes", True),
)
# Connections of each worker.
OF_WORKERS = {"redis": "Redis", "airflow-worker celery": "PostgreSQL's database `celery`"}


def tables(entries: Sequence[Entry]) -> str:
    """Return the tables: cost of a release, cost of an idle deployment, and needs at scale."""
    found = measured(entries)
    return "\n\n".join((_release(found), _idle(found), _scarce(found)))


def _release(found: Measured) -> str:
    rows = ["| one release needs | small model | 113 MB | a million small ones |", "|---|---|---|---|"]
    for name, prefix, unit in RELEASE:
        # A negative count is within the noise of the idle one.
        small, large = (max(0.0, added(counts, prefix)) for counts in (found.small, found.large))
        rows.append(_row(name, unit, small, large))
    small, large = (each["parity_latency"] for each in (found.small_task_s, found.large_task_s))
    rows.append(_row("of it, measuring", "s", small, large))
    return "\n".join(rows)


def _row(name: str, unit: str, small: float, large: float) -> str:
    cells = [short(number, unit) for number in (small, large, small * RUNS)]
    return f"| {name} | {' | '.join(cells)} |"


def _idle(found: Measured) -> str:
    rows = ["| with nothing to do | one worker | each worker more | 10 000 workers |", "|---|---|---|---|"]
    for name, prefix, of_workers in IDLE:
        one, more = added(found.idle, prefix), added(found.each_worker, prefix)
        cells = [short(more), short(one + WORKERS * more)] if of_workers else ["–", short(one)]
        rows.append(f"| {name}, a second | {short(one)} | {' | '.join(cells)} |")
    for key, name in OF_WORKERS.items():
        one, more = found.connections[key], found.connections_each_worker[key]
        rows.append(f"| connections to {name} | {short(one)} | {short(more)} | {short(one + WORKERS * more)} |")
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


def short(number: float, unit: str = "") -> str:
    """Return the number with two or three significant digits, whole from 100 on, with k, M, G or T if long."""
    if unit == "s" and number >= 10 * HOUR_S:
        return short(number / HOUR_S, "h")
    from_k = 1e3 if unit == "B" else 1e4
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= max(limit, from_k):
            return f"{number / limit:.3g} {prefix}{unit}"
    return f"{number:.0f} {unit}".rstrip() if number >= 100 else f"{number:.2g} {unit}".rstrip()
