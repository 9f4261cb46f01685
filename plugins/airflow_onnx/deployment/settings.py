"""Options of Airflow's section `[onnx_release]`, which only the deployment sets.

Airflow reads the environment variable first, for example ``AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE=True``, and then its
configuration file. The defaults are those of `options.py`, also where this package is not installed as a provider.
"""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

from airflow.sdk import conf
from airflow.sdk.exceptions import AirflowConfigException

from airflow_onnx import defaults
from airflow_onnx.deployment.options import OPTIONS, SECTION
from airflow_onnx.errors import DeploymentRefused
from onnx_release.records.artifact import Precision

# Linux has 32 bits for an id, and the last number means "no change".
_USER_MAX = 2**32 - 2


def allow_pickle() -> bool:
    """Return True if pickled models may be loaded. A pickle can run any code on the worker."""
    return _boolean("allow_pickle")


def pickle_experiments() -> list[str]:
    """Return the experiments of MLflow whose pickles may be loaded: ids, names, or patterns of names such as team/*."""
    return _names("pickle_experiments")


def pickle_memory_bytes() -> int | None:
    """Return the memory limit of the process of a pickle in bytes, or None for a share of the worker's memory.

    :raises DeploymentRefused: for a value that is not a whole number above 0.
    """
    return _given_integer("pickle_memory_bytes")


def pickle_user() -> int | None:
    """Return the user and group id of the process of a pickle where the worker is root, or None for the default.

    :raises DeploymentRefused: for a value that is not a whole number from 0 on, and one above the kernel's ids.
    """
    if not _text("pickle_user"):
        return None
    number = int(_number("pickle_user", whole=True, zero=True))
    if number > _USER_MAX:
        raise _refused("pickle_user", str(number), f"Give a whole number up to {_USER_MAX}.")
    return number


def factory_packages() -> tuple[str, ...]:
    """Return the packages whose functions may build a model for a training run that logged only weights."""
    return tuple(_names("factory_packages"))


def release_buckets() -> list[str]:
    """Return the buckets that a release may be in: those of the option and the default bucket."""
    return sorted({*_names("release_buckets"), *filter(None, [bucket()])})


def inputs_buckets() -> list[str]:
    """Return the buckets that `inputs_uri` and `evaluation_uri` may name, besides the bucket of the release."""
    return _names("inputs_buckets")


def staging_uri() -> str:
    """Return the folder (``file://…`` or ``s3://…``) through which the tasks of a release pass the artifact."""
    return (_text("staging_uri") or (_airflow_home() / "onnx_release_staging").as_uri()).rstrip("/")


def staging_conn_id() -> str:
    """Return the connection of type `aws` for an ``s3://`` staging folder."""
    return _text("staging_conn_id")


def cache_folder() -> Path:
    """Return the folder on the worker's own disk that caches downloads."""
    path = _text("cache_folder")
    return Path(path).expanduser().absolute() if path else _airflow_home() / "onnx_release_cache"


def cache_max_bytes() -> int:
    """Return the size limit of the cache folder in bytes; 0 disables the cache.

    :raises DeploymentRefused: for a value that is not a whole number from 0 on.
    """
    return int(_number("cache_max_bytes", whole=True, zero=True))


def runtimes_folder() -> Path:
    """Return the folder on the worker's own disk with environments of other versions of ONNX Runtime."""
    return cache_folder().with_name(f"{cache_folder().name}_runtimes")


def rehearsal_environments() -> dict[str, str]:
    """Return the environments that a rehearsal may name: paths on the worker by name.

    :raises DeploymentRefused: for a value that is not a JSON object of names and absolute paths.
    """
    found = _json("rehearsal_environments", dict)
    if not all(isinstance(path, str) and Path(path).is_absolute() for path in found.values()):
        raise _refused("rehearsal_environments", str(found), "Give absolute paths by name.")
    return dict(found)


def _airflow_home() -> Path:
    return Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser().resolve()


def airflow_url() -> str:
    """Return the address of Airflow's UI without a trailing slash, or an empty string if it is not configured."""
    return str(conf.get("api", "base_url", fallback="") or "").rstrip("/")


def bucket() -> str:
    """Return the bucket of the released artifacts, for releases that name no other. An empty text if none is set."""
    return _text("bucket")


def prefix() -> str:
    """Return the folder in the bucket for the released artifacts. An empty text stands for the root of the bucket."""
    return _text("prefix").strip("/")


def pages() -> bool:
    """Return True if Airflow shows the pages of releases."""
    return _boolean("pages")


def pages_mlflow_conn_id() -> str:
    """Return the connection of type `mlflow` whose releases the pages show."""
    return _text("pages_mlflow_conn_id")


def protected_aliases() -> list[str]:
    """Return the aliases that move only after a person approved it."""
    return _names("protected_aliases")


def signing_conn_id() -> str:
    """Return the connection with the key that signs releases, or an empty text if none is signed."""
    return _text("signing_conn_id")


def require_signature() -> bool:
    """Return True if an alias moves only to a version with a valid signature."""
    return _boolean("require_signature")


def is_protected(alias: str) -> bool:
    """Return True if a person must approve each move of the alias. A reduced precision has the same protection."""
    plain = {alias.removesuffix(f"-{precision}") for precision in Precision}
    return bool({alias, *plain}.intersection(protected_aliases()))


def watch_experiments() -> list[str]:
    """Return names, ids or patterns of the experiments whose finished runs are released; ``*`` stands for all."""
    return _names("watch_experiments")


def watch_filter() -> str:
    """Return more conditions for these runs in MLflow's filter language, or an empty string."""
    return _text("watch_filter")


def watch_cron() -> str:
    """Return the schedule of the watch between asset events. It is also the interval of a backfill."""
    return _text("watch_cron")


def watch_poll_s() -> float:
    """Return the seconds between two polls for finished training runs.

    :raises DeploymentRefused: for a value that is not a number above 0.
    """
    return _number("watch_poll_s")


def watch_routes() -> list[Any]:
    """Return the routes of the watch as they are configured. `airflow_onnx.watch.routes` checks them.

    :raises DeploymentRefused: for a value that is not a JSON list.
    """
    return list(_json("watch_routes", list))


def placement() -> dict[str, Any]:
    """Return the option `placement`: by kind of task, the fields of `placement.Place`.

    :raises DeploymentRefused: for a value that is not a JSON object.
    """
    return dict(_json("placement", dict))


def given_slots(option: str) -> int | None:
    """Return `export_slots` or `measure_slots` as it is set, or None without it.

    :raises DeploymentRefused: for a value that is not a whole number above 0.
    """
    return _given_integer(option)


def export_slots() -> int:
    """Return the slots of the pool of the exports when it is created.

    With LocalExecutor two slots of the executor are left beside the exports and measurements: a light task, such as
    that of the watch, never waits for the end of an export.

    :raises DeploymentRefused: as in `given_slots`.
    """
    if given := given_slots("export_slots"):
        return given
    if not _is_local():
        return defaults.EXPORT_SLOTS_MAX
    from onnx_release.latency.host import usable_cpus

    left = conf.getint("core", "parallelism") - measure_slots() - 2
    return max(1, min(usable_cpus(), left))


def measure_slots() -> int:
    """Return the slots of the measuring pool when it is created.

    :raises DeploymentRefused: as in `given_slots`.
    """
    return int(_number("measure_slots", whole=True))


def _is_local() -> bool:
    """Return True if LocalExecutor runs all tasks, by its name or its path."""
    return str(conf.get("core", "executor")).rpartition(".")[2] == "LocalExecutor"


def preload() -> bool:
    """Return True if the scheduler imports the libraries of the tasks before LocalExecutor forks."""
    return _boolean("preload")


def measure_lock() -> str:
    """Return the path of the file that a task locks while it measures.

    :raises DeploymentRefused: for a relative path.
    """
    path = _text("measure_lock") or str(Path(tempfile.gettempdir()) / "onnx_release_measure.lock")
    if not Path(path).is_absolute():
        raise _refused("measure_lock", path, "Give the absolute path of a file.")
    return path


def measure_lock_timeout_s() -> float:
    """Return the seconds that a task waits for another measurement on its host.

    :raises DeploymentRefused: for a value that is not a number above 0.
    """
    return _number("measure_lock_timeout_s")


def retries() -> int:
    """Return the retries of a task after a failure that may heal.

    :raises DeploymentRefused: for a value that is not a whole number from 0 on.
    """
    return int(_number("retries", whole=True, zero=True))


def end_retries() -> int:
    """Return the retries of a task that must outlast an outage.

    :raises DeploymentRefused: as in `retries`.
    """
    return int(_number("end_retries", whole=True, zero=True))


def retry_delay_s() -> float:
    """Return the seconds before the first retry.

    :raises DeploymentRefused: for a value that is not a number above 0; likewise the two below.
    """
    return _number("retry_delay_s")


def retry_max_delay_s() -> float:
    """Return the longest delay of a retry in seconds."""
    return _number("retry_max_delay_s")


def task_timeout_s() -> float:
    """Return the time limit of each try of a task in seconds."""
    return _number("task_timeout_s")


def request_timeout_s() -> float:
    """Return the longest wait for an answer of MLflow or the store in seconds.

    :raises DeploymentRefused: for a value that is not a number above 0.
    """
    return _number("request_timeout_s")


def _text(option: str) -> str:
    # An empty value in airflow.cfg means "not set".
    return str(conf.get(SECTION, option, fallback="") or OPTIONS[option].default or "")


def _boolean(option: str) -> bool:
    if not conf.get(SECTION, option, fallback=""):
        return OPTIONS[option].default == "True"
    return bool(conf.getboolean(SECTION, option))


def _names(option: str) -> list[str]:
    return [name for name in conf.getlist(SECTION, option, fallback=[]) if name]


def _given_integer(option: str) -> int | None:
    """Return a whole number above 0, or None for an option that is not set."""
    return int(_number(option, whole=True)) if _text(option) else None


def _number(option: str, *, whole: bool = False, zero: bool = False) -> float:
    try:
        number = float((int if whole else float)(_text(option)))
    except ValueError:
        number = math.nan
    if not (0 < number < math.inf or (zero and number == 0)):
        kind = "whole number" if whole else "number"
        raise _refused(option, _text(option), f"Give a {kind} {'from 0 on' if zero else 'above 0'}.")
    return number


def _json(option: str, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    try:
        found = conf.getjson(SECTION, option) if conf.get(SECTION, option, fallback="") else kind()
    except AirflowConfigException:
        found = None
    if not isinstance(found, kind):
        noun = "list" if kind is list else "object"
        raise _refused(option, _text(option), f"Give a JSON {noun}: {OPTIONS[option].example}.")
    return found


def _refused(option: str, value: str, action: str) -> DeploymentRefused:
    return DeploymentRefused(f"The option [{SECTION}] {option}", f"is {value!r:.200}", action, code="wrong_option")
