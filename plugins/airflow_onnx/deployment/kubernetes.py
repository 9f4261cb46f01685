"""What a task asks of Kubernetes: the part of its pod that differs from the deployment's template."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from onnx_release.errors import Refused
from onnx_release.records.base import Record

# Quantities as Kubernetes writes them, without the rarer forms (exponents, units of milli-bytes), and above zero.
CPU_PATTERN = r"^(?=.*[1-9])(\d{1,5}(\.\d{1,3})?|\d{1,8}m)$"
MEMORY_PATTERN = r"^(?=.*[1-9])\d{1,15}(\.\d{1,3})?(k|M|G|T|Ki|Mi|Gi|Ti)?$"
LABEL_KEY_PATTERN = r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
LABEL_PATTERN = r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"

GPU = "nvidia.com/gpu"
# By this label a pod that measures keeps others like it from its node.
MEASURING = {"onnx-release/measuring": "true"}


class Place(Record):
    """Where a kind of task runs; what is not given is Airflow's default.

    `queue`, `pool`, `pool_slots` and `executor` are those of Airflow's operators. The rest is for Kubernetes alone:
    `cpu` and `memory` are requests and limits in one, `gpu` is a number of NVIDIA's, `node_selector` holds labels
    of the nodes and `tolerate` taints of theirs, by key.
    """

    queue: str | None = None
    pool: str | None = None
    pool_slots: int | None = None
    executor: str | None = None
    cpu: int | float | str | None = None
    memory: int | str | None = None
    gpu: int | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerate: dict[str, str] = Field(default_factory=dict)


def executor_config(place: Place, *, alone: bool) -> dict[str, Any]:
    """Return the `executor_config` of a task on a KubernetesExecutor; empty where the task asks for nothing.

    :param alone: whether no second pod of these may be on the same node.
    :raises Refused: when the client of Kubernetes is not installed.
    """
    amounts = {"cpu": place.cpu, "memory": place.memory, GPU: place.gpu}
    resources = {name: str(amount) for name, amount in amounts.items() if amount is not None}
    if not (alone or resources or place.node_selector or place.tolerate):
        return {}
    try:
        from kubernetes.client import models as k8s
    except ImportError as error:
        raise Refused(
            "the package `kubernetes`",
            "is missing where DAG files are parsed, and a KubernetesExecutor is configured",
            "Install apache-airflow-providers-cncf-kubernetes there too.",
        ) from error
    # Requests that are the limits: the pod is of the class Guaranteed, is evicted last, and with whole CPUs and the
    # kubelet's static policy has them to itself.
    asked = k8s.V1ResourceRequirements(requests=dict(resources), limits=dict(resources)) if resources else None
    tolerations = [k8s.V1Toleration(key=key, operator="Equal", value=value) for key, value in place.tolerate.items()]
    spec = k8s.V1PodSpec(
        containers=[k8s.V1Container(name="base", resources=asked)],
        node_selector=dict(place.node_selector) or None,
        tolerations=tolerations or None,
        affinity=_apart(k8s) if alone else None,
    )
    metadata = k8s.V1ObjectMeta(labels=dict(MEASURING) if alone else None)
    return {"pod_override": k8s.V1Pod(metadata=metadata, spec=spec)}


def _apart(k8s: Any) -> Any:
    others = k8s.V1LabelSelector(match_labels=dict(MEASURING))
    term = k8s.V1PodAffinityTerm(label_selector=others, topology_key="kubernetes.io/hostname")
    rule = k8s.V1PodAntiAffinity(required_during_scheduling_ignored_during_execution=[term])
    return k8s.V1Affinity(pod_anti_affinity=rule)
