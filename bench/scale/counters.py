"""Counters of a deployment at one moment, and their differences between two moments."""

from __future__ import annotations

import subprocess
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from bench.scale import access_logs, servers
from bench.scale.deployment import WORKER, Deployment
from deploy import env
from deploy.compose import Container, docker
from stack.errors import StackError

Counts = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Values of rising counters by name, at a time of a monotonic clock."""

    at_s: float
    counts: Counts


class Counters:
    """Reader of all counters, for the containers that run at its creation."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._containers = [one for one in deployment.project.containers() if one.facts["State"]["Running"]]
        self._callers = {address: one.service for one in self._containers for address in _addresses(one)}
        self._of = {one.service: one for one in self._containers}

    def snapshot(self) -> Snapshot:
        """Read all counters; events of the last `servers.SETTLE_S` may be missing."""
        counts: defaultdict[str, float] = defaultdict(float)
        for one in self._containers:
            for name, number in servers.container(_inside(one, "sh", "-c", servers.CONTAINER_SCRIPT)).items():
                counts[f"{name}/{one.service}"] += number
            if one.service == WORKER:
                for name, number in access_logs.workloads(_log(one)).items():
                    counts[f"worker/{name}"] += number
        tables = {name: self._sql(name, servers.TABLES_SQL) for name in servers.DATABASES}
        counts |= servers.postgres(self._sql("postgres", servers.SERVER_SQL), tables)
        counts |= servers.redis(self._redis()) | servers.minio(self._minio())
        mlflow = access_logs.mlflow_requests(_log(self._of["mlflow"]), self._callers)
        airflow = access_logs.airflow_requests(_log(self._of["airflow-api-server"]), self._callers)
        counts |= _named("mlflow/request", mlflow) | _named("airflow/request", airflow)
        return Snapshot(at_s=time.monotonic(), counts=dict(counts))

    def settled(self) -> Snapshot:
        """Read all counters after the servers have counted all requests."""
        time.sleep(servers.SETTLE_S)
        return self.snapshot()

    def connections(self) -> dict[str, int]:
        """Return the open connections: to PostgreSQL as ``SERVICE DATABASE``, and all of Redis."""
        server = self._sql("postgres", servers.SERVER_SQL)
        return servers.connections(server, self._callers) | {"redis": servers.redis_clients(self._redis())}

    def images(self) -> dict[str, str]:
        """Return the digest of each service's image."""
        return {one.service: str(one.facts["Image"]) for one in self._containers}

    def _sql(self, database: str, query: str) -> Any:
        command = ("psql", "-U", "postgres", "-d", database, "-AtX", "-c", query)
        return servers.parsed(_inside(self._of["postgres"], *command))

    def _redis(self) -> str:
        return _inside(self._of["redis"], "sh", "-c", 'REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli INFO all')

    def _minio(self) -> str:
        secrets = env.read(self._deployment.project.env_file)
        user = secrets.get("MINIO_ROOT_USER", "minio-root")
        return servers.minio_metrics(self._deployment.context.minio_url, user, secrets["MINIO_ROOT_PASSWORD"])


def between(before: Snapshot, after: Snapshot) -> tuple[float, Counts]:
    """Return the seconds between two snapshots, and the increase of each counter that rose."""
    risen = {name: number - before.counts.get(name, 0.0) for name, number in after.counts.items()}
    return after.at_s - before.at_s, {name: number for name, number in risen.items() if number}


def rates(before: Snapshot, after: Snapshot) -> Counts:
    """Return the increase of each counter per second."""
    seconds, risen = between(before, after)
    return {name: number / seconds for name, number in risen.items()}


def of_each(seconds: float, risen: Counts, idle: Counts, count: int) -> Counts:
    """Return the cost of each of `count` releases above the counts of an idle deployment.

    Args:
        seconds: Duration of the releases.
        risen: Increase of each counter.
        idle: Increase per second of an idle deployment.
        count: Number of releases.
    """
    return {name: (number - idle.get(name, 0.0) * seconds) / count for name, number in risen.items()}


def on_line(few: tuple[int, Counts], many: tuple[int, Counts], workers: int) -> Counts:
    """Return the counts for a number of workers, on the straight line through the counts of two numbers."""
    (x1, low), (x2, high) = few, many
    share = (workers - x1) / (x2 - x1)
    names = low.keys() | high.keys()
    return {name: (1 - share) * low.get(name, 0.0) + share * high.get(name, 0.0) for name in names}


def _addresses(one: Container) -> list[str]:
    networks = one.facts["NetworkSettings"]["Networks"].values()
    return [network["IPAddress"] for network in networks if network["IPAddress"]]


def _named(prefix: str, counted: Counter[str]) -> Counts:
    return {f"{prefix}/{name}": float(number) for name, number in counted.items()}


def _inside(one: Container, *command: str) -> str:
    done = subprocess.run([docker(), "exec", one.id, *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StackError(f"{one}: `{command[0]}` ended with status {done.returncode}: {done.stderr.strip():.500}")
    return done.stdout


def _log(one: Container) -> list[str]:
    pipe = subprocess.PIPE
    done = subprocess.run([docker(), "logs", one.id], stdout=pipe, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode(errors="replace").splitlines()
