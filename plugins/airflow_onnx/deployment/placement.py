"""Where the tasks of a release run: by kind of task as the deployment says, and by what a release asks for.

The option `[onnx_release] placement` is an object of kinds of task, each with the fields of `Place`. It is read when
the DAG file is parsed, so that a mistake is an import error of the DAG, and by `policy.py` when a DAG run is made.
"""

from __future__ import annotations

import re
from typing import Any

from airflow.sdk import conf

from airflow_onnx.deployment import kubernetes, settings
from airflow_onnx.deployment.kubernetes import Place
from onnx_release import limits
from onnx_release.errors import Refused

OPTION = f"[{settings.SECTION}] placement"
LIGHT, EXPORT, MEASURE = "light", "export", "measure"
# What an export on CUDA asks for: itself, and the tasks that test what it made, need a host with a GPU.
ON_CUDA = {EXPORT: "export_cuda", MEASURE: "measure_cuda"}
KINDS = (LIGHT, EXPORT, MEASURE, *ON_CUDA.values())

_POOL_PATTERN = r"^[\w.-][\w. -]{0,255}$"


def arguments(kind: str) -> dict[str, Any]:
    """Return the arguments of an Airflow operator that say where it runs, all of them, for one kind of task.

    :raises Refused: naming the field of the option `placement` that is wrong, of whatever kind.
    """
    place = places().get(kind, Place())
    return {
        "queue": place.queue or conf.get("operators", "default_queue"),
        "pool": place.pool or (limits.MEASURE_POOL if kind == MEASURE else "default_pool"),
        "pool_slots": place.pool_slots or 1,
        "executor": place.executor,
        "executor_config": executor_config(kind, place),
    }


def places() -> dict[str, Place]:
    """Return the places that the deployment has given, by kind; raises `Refused` naming the wrong field."""
    found = {}
    for kind, given in settings.placement().items():
        if kind not in KINDS:
            raise _refused(kind, f"is no kind of task: {kind!r:.80}", f"Name {', '.join(KINDS)}.")
        try:
            found[kind] = Place.from_dict(given)
        except Refused as error:
            raise _refused(kind, f"{error.subject.removeprefix('Place.')} {error.problem}", "Correct it.") from error
        _require_sound(kind, found[kind])
    return found


def executor_config(kind: str, place: Place) -> dict[str, Any]:
    """Return the pod that Kubernetes is asked for, or nothing where no KubernetesExecutor is configured.

    To import the client of Kubernetes takes longer than to parse the DAG, so that is done only where it is needed.
    """
    if "KubernetesExecutor" not in str(conf.get("core", "executor")):
        return {}
    return kubernetes.executor_config(place, alone=kind in (MEASURE, ON_CUDA[MEASURE]))


def require_queue(asked: str, queue: str | None) -> None:
    """Raise `Refused` when a task that a release sent to a queue does not run there: it is the wrong host.

    :param asked: the release's parameter; empty or ``auto`` where it leaves that to the deployment.
    :param queue: the queue that the task was sent to.
    """
    if asked in ("", limits.QUEUE_AS_CONFIGURED, queue):
        return
    raise Refused(
        f"queue '{asked}'",
        f"was asked for, and this task was sent to '{queue}'",
        "The cluster policy of this package must be loaded by the scheduler and the API server; see docs/placement.md.",
    )


def _require_sound(kind: str, place: Place) -> None:
    rules: dict[str, tuple[Any, str]] = {
        "queue": (place.queue, limits.QUEUE_PATTERN),
        "pool": (place.pool, _POOL_PATTERN),
        "cpu": (place.cpu, kubernetes.CPU_PATTERN),
        "memory": (place.memory, kubernetes.MEMORY_PATTERN),
    }
    for name, (value, pattern) in rules.items():
        if value is not None and not re.fullmatch(pattern, str(value)):
            raise _refused(kind, f"{name} is {value!r:.80}", f"It must match {pattern}.")
    for name, number in {"pool_slots": place.pool_slots, "gpu": place.gpu}.items():
        if number is not None and number < 1:
            raise _refused(kind, f"{name} is {number}", "It must be 1 or more; leave it out for none.")
    for name, labels in {"node_selector": place.node_selector, "tolerate": place.tolerate}.items():
        for key, value in labels.items():
            if not re.fullmatch(kubernetes.LABEL_KEY_PATTERN, key) or not re.fullmatch(kubernetes.LABEL_PATTERN, value):
                raise _refused(kind, f"{name} has {key!r:.80}: {value!r:.80}", "Kubernetes takes no such label.")
    if place.queue == limits.QUEUE_AS_CONFIGURED:
        raise _refused(kind, f"queue is {place.queue!r}", "That name stands for the deployment's choice; take another.")


def _refused(kind: str, problem: str, action: str) -> Refused:
    return Refused(f"{OPTION}, {kind!r:.80}", problem, f"{action} See docs/placement.md.")
