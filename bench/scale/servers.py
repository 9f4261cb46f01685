"""Counters of the servers: PostgreSQL, Redis, MinIO, and the kernel's counters of every container."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections import Counter
from typing import Any

import jwt

from bench.figure import NotMeasured
from stack.http import TIMEOUT_S, session

DATABASES = ("airflow", "celery", "mlflow")
# MinIO's server and an idle PostgreSQL session update their figures every 10 s.
SETTLE_S = 12.0

# One row, in JSON. The write-ahead log is that of all databases together.
SERVER_SQL = """SELECT json_build_object(
  'wal_bytes', (SELECT wal_bytes FROM pg_stat_wal),
  'databases', (SELECT json_object_agg(datname, json_build_object(
     'transactions', xact_commit + xact_rollback, 'rows_inserted', tup_inserted, 'rows_updated', tup_updated,
     'rows_deleted', tup_deleted, 'rows_read', tup_fetched, 'size_bytes', pg_database_size(datname)))
   FROM pg_stat_database WHERE datname IN ('airflow', 'celery', 'mlflow')),
  'connections', (SELECT json_agg(json_build_array(datname, host(client_addr)))
   FROM pg_stat_activity WHERE client_addr IS NOT NULL))"""
TABLES_SQL = """SELECT json_object_agg(relname, json_build_object(
  'inserted', n_tup_ins, 'updated', n_tup_upd, 'deleted', n_tup_del, 'size_bytes', pg_total_relation_size(relid)))
 FROM pg_stat_user_tables WHERE n_tup_ins + n_tup_upd + n_tup_del > 0"""

# Both kinds of control groups: nanoseconds in version 1, a line `usage_usec` in version 2.
CONTAINER_SCRIPT = (
    "cat /proc/net/dev; cd /sys/fs/cgroup; "
    "cat cpuacct/cpuacct.usage 2>/dev/null || cat cpu,cpuacct/cpuacct.usage 2>/dev/null || cat cpu.stat"
)


def container(text: str) -> dict[str, float]:
    """Return from `CONTAINER_SCRIPT`'s output the CPU seconds and the network bytes in and out."""
    found = {"net_in_bytes": 0.0, "net_out_bytes": 0.0}
    for device, numbers in re.findall(r"^ *(\S+):(.*)$", text, re.MULTILINE):
        if device != "lo":
            fields = numbers.split()
            found["net_in_bytes"] += float(fields[0])
            found["net_out_bytes"] += float(fields[8])
    if usage := re.search(r"^usage_usec (\d+)$", text, re.MULTILINE):
        return found | {"cpu_s": int(usage[1]) / 1e6}
    if usage := re.search(r"^(\d+)$", text, re.MULTILINE):
        return found | {"cpu_s": int(usage[1]) / 1e9}
    raise NotMeasured("The containers' control groups have no CPU time. Mount them at /sys/fs/cgroup.")


def postgres(server: dict[str, Any], tables: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return counts by database, and those of each table below its database."""
    found = {"postgres/wal_bytes": float(server["wal_bytes"])}
    for database, counts in server["databases"].items():
        found |= {f"postgres/{database}/{name}": float(count) for name, count in counts.items()}
    for database, rows in tables.items():
        for table, counts in (rows or {}).items():
            found |= {f"table/{database}/{table}/{name}": float(count) for name, count in counts.items()}
    return found


def connections(server: dict[str, Any], callers: dict[str, str]) -> dict[str, int]:
    """Return the number of sessions of each service in each database, as ``SERVICE DATABASE``."""
    count = Counter(f"{callers.get(address, address)} {name}" for name, address in server["connections"] or [])
    return dict(count)


def redis(info: str) -> dict[str, float]:
    """Return from ``INFO all`` the commands by name and the bytes."""
    found = {f"redis/command/{name}": float(n) for name, n in re.findall(r"^cmdstat_(\S+?):calls=(\d+)", info, re.M)}
    for name, key in (("in_bytes", "total_net_input_bytes"), ("out_bytes", "total_net_output_bytes")):
        found[f"redis/{name}"] = _number(info, key)
    return found


def redis_clients(info: str) -> int:
    """Return the number of connected clients."""
    return int(_number(info, "connected_clients"))


def _number(info: str, key: str) -> float:
    found = re.search(rf"^{key}:(\d+)", info, re.M)
    return float(found[1]) if found else 0.0


def minio(text: str) -> dict[str, float]:
    """Return from MinIO's metrics the S3 requests by kind, and the bytes of all of them."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if request := re.match(r'minio_s3_requests_total\{.*?api="([^"]+)".*\} (\S+)', line):
            found[f"minio/request/{request[1]}"] = float(request[2])
        elif traffic := re.match(r"minio_s3_traffic_(received|sent)_bytes(?:\{.*\})? (\S+)", line):
            found[f"minio/{traffic[1]}_bytes"] = float(traffic[2])
    return found


def minio_metrics(url: str, user: str, password: str) -> str:
    """Return MinIO's metrics for Prometheus, with the rights of its root account."""
    claims = {"exp": int(time.time()) + 600, "sub": user, "iss": "prometheus"}
    with warnings.catch_warnings():
        # MinIO requires this algorithm and limits the length of the password.
        warnings.simplefilter("ignore")
        token = jwt.encode(claims, password, algorithm="HS512")
    headers = {"Authorization": f"Bearer {token}"}
    answer = session().get(f"{url}/minio/v2/metrics/cluster", headers=headers, timeout=TIMEOUT_S)
    answer.raise_for_status()
    return answer.text


def parsed(text: str) -> Any:
    """Return psql's one row as JSON."""
    return json.loads(text.strip() or "null")
