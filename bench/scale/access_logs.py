"""Figures from logs: requests by caller and endpoint, occupied slots of workers, and use of the workers' caches."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# 2026/11/26 11:30:06 INFO:     172.21.0.10:55252 - "POST /api/2.0/mlflow/runs/search HTTP/1.1" 200 OK
_MLFLOW = re.compile(r'(?P<caller>[\d.]+):\d+ - "(?P<verb>[A-Z]+) (?P<path>\S+) HTTP')
# … [http.access] client_addr=172.21.0.8:50608 duration_us=5115 … method=GET path=/execution/connections/x query= …
_AIRFLOW = re.compile(r"client_addr=(?P<caller>[\d.]+):\d+ .*method=(?P<verb>[A-Z]+) path=(?P<path>\S+)")
# … Task execute_workload[5315f6a8-…] succeeded in 6.732741279000038s: None …
_WORKLOAD = re.compile(r"Task execute_workload\[\S+\] succeeded in ([\d.]+)s")
# The trained model models:/m-…, 113 MB, from this worker's cache.
_CACHE = re.compile(r", ([\d.]+) (bytes|kB|MB|GB), (from this worker's cache|fetched in .+)\.$")
_UNITS = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
# For these words of MLflow's API the second word is the action.
_TWO_WORDS = {"runs", "experiments", "model-versions", "registered-models", "mlflow-artifacts"}
_WORD = re.compile(r"[a-z][a-z-]*")


def mlflow_requests(lines: Iterable[str], callers: Mapping[str, str]) -> Counter[str]:
    """Count requests as ``CALLER VERB ENDPOINT``, without health checks; `callers` maps addresses to services."""
    return _counted(_MLFLOW, lines, callers, mlflow_endpoint)


def airflow_requests(lines: Iterable[str], callers: Mapping[str, str]) -> Counter[str]:
    """Count requests of tasks, workers and the triggerer to Airflow's API server."""
    return _counted(_AIRFLOW, lines, callers, airflow_endpoint)


def workloads(lines: Iterable[str]) -> dict[str, float]:
    """Return the number of tasks that a worker ended (``ended``) and the time that they used a slot (``slot_s``).

    The time is longer than in the tasks' records: the slot is also used while the log is uploaded.
    """
    seconds = [float(found[1]) for line in lines if (found := _WORKLOAD.search(line))]
    return {"ended": float(len(seconds)), "slot_s": sum(seconds)}


def cache_use(lines: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Count the hits and misses of a worker's cache, and their bytes to three digits, in the log of a task."""
    used: Counter[str] = Counter()
    for line in lines:
        if found := _CACHE.search(str(line.get("event", ""))):
            names = ("misses", "miss_bytes") if found[3].startswith("fetched") else ("hits", "hit_bytes")
            used.update(dict(zip(names, (1, round(float(found[1]) * _UNITS[found[2]])), strict=True)))
    return used


def _counted(
    pattern: re.Pattern[str], lines: Iterable[str], callers: Mapping[str, str], endpoint: Callable[[str], str]
) -> Counter[str]:
    count: Counter[str] = Counter()
    for line in lines:
        found = pattern.search(line)
        if found and (caller := callers.get(found["caller"])) and (name := endpoint(found["path"])):
            count[f"{caller} {found['verb']} {name}"] += 1
    return count


def mlflow_endpoint(path: str) -> str:
    """Return the endpoint of a path without names and ids; empty for a health check."""
    words = [word for word in path.partition("?")[0].split("/") if word]
    if words[:1] == ["api"]:
        words = words[2:]
    if words[:1] == ["mlflow"]:
        words = words[1:]
    if words in ([], ["health"]):
        return ""
    second = words[1] if len(words) > 1 and words[0] in _TWO_WORDS and _WORD.fullmatch(words[1]) else ""
    return "/".join(filter(None, (words[0], second)))


def airflow_endpoint(path: str) -> str:
    """Return the endpoint of a path of the API for tasks, without names and ids; empty for other paths."""
    words = [word for word in path.partition("?")[0].split("/") if word]
    if words[:1] != ["execution"] or len(words) < 2:
        return ""
    # task-instances/ID/heartbeat: the third word is the action.
    third = words[3] if words[1] == "task-instances" and len(words) == 4 else ""
    return "/".join(filter(None, (words[1], third)))
