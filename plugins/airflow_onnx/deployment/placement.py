"""Placement of a release's tasks by kind of task.

An object has kinds of task, each with the fields of `Place`. The argument of a factory precedes the option
`[onnx_release] placement`, field by field. Both are read when the DAG file is parsed: a mistake is an import error of
the DAG.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import conf

from airflow_onnx import defaults
from airflow_onnx.deployment import kubernetes, settings
from airflow_onnx.deployment.kubernetes import Place
from airflow_onnx.deployment.options import SECTION
from airflow_onnx.errors import DeploymentRefused
from onnx_release.errors import RecordRefused

LIGHT, EXPORT, MEASURE, WATCH = "light", "export", "measure", "watch"
KINDS = (LIGHT, EXPORT, MEASURE, WATCH)
# By kind of task. Airflow has the default pool.
_POOLS = {EXPORT: defaults.EXPORT_POOL, MEASURE: defaults.MEASURE_POOL, WATCH: defaults.WATCH_POOL}


def arguments(kind: str, placed: Mapping[str, Place] | None = None) -> dict[str, Any]:
    """Return the placement arguments of an Airflow operator for one kind of task.

    :param placed: the result of `places`, None for those of the option.
    :raises DeploymentRefused: for any wrong field of the option, also of another kind.
    """
    place = (places() if placed is None else placed).get(kind, Place())
    return {
        "queue": place.queue or conf.get("operators", "default_queue"),
        "pool": _pool(kind, place),
        "pool_slots": place.pool_slots or 1,
        "executor": place.executor,
        # Importing the Kubernetes client takes longer than parsing the DAG, so only a KubernetesExecutor pays for it.
        "executor_config": kubernetes.executor_config(place, alone=kind == MEASURE) if _on_kubernetes() else {},
    }


def pool(kind: str) -> str:
    """Return the pool of one kind of task, by the option.

    :raises DeploymentRefused: as in `arguments`.
    """
    return _pool(kind, places().get(kind, Place()))


def _pool(kind: str, place: Place) -> str:
    return place.pool or _POOLS.get(kind, "default_pool")


def places(given: Mapping[str, Any] | None = None) -> dict[str, Place]:
    """Return the places by kind of task.

    :param given: the argument of a factory.
    :raises DeploymentRefused: for an unknown kind, or a wrong field, which the message names.
    """
    # Without its slots a pool is not created, and its tasks would wait for ever.
    for option in ("export_slots", "measure_slots"):
        settings.given_slots(option)
    found = _read(f"The option [{SECTION}] placement", settings.placement())
    for kind, place in _read("The argument placement", given or {}).items():
        changed = {name: getattr(place, name) for name in place.model_fields_set}
        found[kind] = found.get(kind, Place()).replace(**changed)
    return found


def _read(origin: str, kinds: Mapping[str, Any]) -> dict[str, Place]:
    found = {}
    for kind, fields in kinds.items():
        subject = f"{origin}, {kind!r:.80},"
        if kind not in KINDS:
            action = f"Use {', '.join(KINDS)}. See docs/placement.md."
            raise DeploymentRefused(subject, "is not a kind of task", action, code="unknown_kind")
        try:
            found[kind] = Place.from_dict(fields)
        except RecordRefused as error:
            problem = f"has a wrong value: {error.subject} {error.problem}"
            raise DeploymentRefused(subject, problem, "See docs/placement.md.", code="wrong_placement") from error
    return found


def _on_kubernetes() -> bool:
    return "KubernetesExecutor" in str(conf.get("core", "executor"))
