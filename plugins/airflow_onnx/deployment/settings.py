"""What the deployment decides, and a person who triggers a release cannot: Airflow's `[onnx_release]` section.

Each option can be set as an environment variable, e.g. ``AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE=True``.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from airflow.sdk import conf

from onnx_release import limits
from onnx_release.errors import Refused

SECTION = "onnx_release"


def allow_pickle() -> bool:
    """Tell whether pickled models may be loaded; loading one runs whatever code its author put in."""
    return bool(conf.getboolean(SECTION, "allow_pickle", fallback=False))


def factory_packages() -> tuple[str, ...]:
    """Return the packages whose functions may make a model for a training run that left weights alone."""
    text = str(conf.get(SECTION, "factory_packages", fallback="") or "")
    return tuple(part.strip() for part in text.split(",") if part.strip())


def staging_uri() -> str:
    """Return the folder (``file://…`` or ``s3://…``) that the tasks of one release hand the artifact through."""
    default = (_airflow_home() / "onnx_release_staging").as_uri()
    return str(conf.get(SECTION, "staging_uri", fallback=default)).rstrip("/")


def staging_conn_id() -> str:
    """Return the connection of type `aws` that leads to an ``s3://`` staging folder."""
    return str(conf.get(SECTION, "staging_conn_id", fallback="minio_default"))


def cache_folder() -> Path:
    """Return the folder on this worker's own disk that keeps what its tasks have fetched."""
    given = str(conf.get(SECTION, "cache_folder", fallback="") or "")
    return Path(given).expanduser().absolute() if given else _airflow_home() / "onnx_release_cache"


def cache_max_bytes() -> int:
    """Return how much that folder may hold; 0 keeps nothing. Raises `Refused` for what is no such number."""
    text = str(conf.get(SECTION, "cache_max_bytes", fallback=limits.CACHE_MAX_BYTES)).strip()
    if not (text.isascii() and text.isdigit()):
        raise Refused(f"[{SECTION}] cache_max_bytes", f"is {text!r:.80}", "Give bytes as a whole number, 0 for none.")
    return int(text)


def _airflow_home() -> Path:
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser().resolve()


def airflow_url() -> str:
    """Return the address of Airflow's UI without a trailing slash, or an empty string when it is not configured."""
    return str(conf.get("api", "base_url", fallback="") or "").rstrip("/")


def watch_experiments() -> list[str]:
    """Return the names or ids of the experiments whose runs are released as they end; ``*`` stands for all."""
    text = str(conf.get(SECTION, "watch_experiments", fallback="") or "")
    return [part.strip() for part in text.split(",") if part.strip()]


def watch_filter() -> str:
    """Return more conditions for these runs, in MLflow's filter language, or an empty string."""
    return str(conf.get(SECTION, "watch_filter", fallback="") or "")


def watch_cron() -> str:
    """Return when `watch_training` looks without being called: the schedule, and so the interval of a backfill."""
    return str(conf.get(SECTION, "watch_cron", fallback=limits.WATCH_CRON))


def watch_poll_s() -> float:
    """Return the seconds between two looks of the bell that rings when a training run has ended."""
    return float(conf.getfloat(SECTION, "watch_poll_s", fallback=limits.WATCH_POLL_S))


def watch_release_params() -> dict[str, Any]:
    """Return parameters of `release_onnx` for every release that the watch starts; raises `Refused` for bad JSON."""
    return _json_object("watch_release_params", '{"alias": "x"}')


def placement() -> dict[str, Any]:
    """Return where the tasks of a release run, by kind, for `placement.py` to read; raises `Refused` for bad JSON."""
    return _json_object("placement", '{"measure": {"queue": "measuring"}}')


def queue_choices() -> tuple[str, ...]:
    """Return the queues that a person may send the heavy tasks of a release to; raises `Refused` for a bad name."""
    text = str(conf.get(SECTION, "queue_choices", fallback="") or "")
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in found:
        if not re.fullmatch(limits.QUEUE_PATTERN, name) or name == limits.QUEUE_AS_CONFIGURED:
            raise Refused(
                f"[{SECTION}] queue_choices",
                f"names {name!r:.80}",
                f"Names match {limits.QUEUE_PATTERN}, with commas between; {limits.QUEUE_AS_CONFIGURED!r} is none.",
            )
    return found


def measure_lock() -> str:
    """Return the path of the file that is locked while a task measures; raises `Refused` when it is not absolute."""
    default = str(Path(tempfile.gettempdir()) / "onnx_release_measure.lock")
    path = str(conf.get(SECTION, "measure_lock", fallback="") or default)
    if not Path(path).is_absolute():
        raise Refused(f"[{SECTION}] measure_lock", f"is {path!r:.200}", "Give the absolute path of a file.")
    return path


def measure_lock_timeout_s() -> float:
    """Return for how many seconds a task waits for another's measuring; raises `Refused` unless that is above 0."""
    text = str(conf.get(SECTION, "measure_lock_timeout_s", fallback="") or limits.MEASURE_LOCK_TIMEOUT_S)
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise Refused(f"[{SECTION}] measure_lock_timeout_s", f"is {text!r:.80}", "Give seconds above 0, such as 1800.")
    return found


def _json_object(option: str, example: str) -> dict[str, Any]:
    text = str(conf.get(SECTION, option, fallback="") or "{}")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused(f"[{SECTION}] {option}", f"is {text!r:.200}", f"Give a JSON object: {example}.")
    return found
