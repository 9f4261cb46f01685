"""Pod overrides for tasks on a KubernetesExecutor."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from airflow_onnx import defaults
from airflow_onnx.errors import DeploymentRefused
from onnx_release.records.base import Record

# Kubernetes' Python client checks none of these; the API server refuses a wrong value only when the task starts, and
# its answer is in the scheduler's log alone. Quantities without the rare forms (exponents, milli-bytes), above zero.
Cpu = Annotated[
    str, StringConstraints(pattern=r"^([1-9][0-9]{0,4}(\.[0-9]{1,3})?|0\.[0-9]{0,2}[1-9]|[1-9][0-9]{0,7}m)$")
]
Memory = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,14}(\.[0-9]{1,3})?(k|M|G|T|Ki|Mi|Gi|Ti)?$")]
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
LabelKey = Annotated[str, StringConstraints(pattern=rf"^([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_LABEL}$")]
Label = Annotated[str, StringConstraints(pattern=f"^({_LABEL})?$")]

GPU = "nvidia.com/gpu"
# Pods with this label repel each other by an anti-affinity.
MEASURING = {"onnx-release/measuring": "true"}


class Place(Record):
    """Placement of one kind of task; Airflow's defaults apply to fields that are None.

    `queue`, `pool`, `pool_slots` and `executor` are arguments of Airflow's operators. The rest applies to Kubernetes
    alone: `cpu` and `memory` are both request and limit, `gpu` is a number of NVIDIA GPUs, `node_selector` contains
    node labels, and `tolerate` node taints by key.
    """

    queue: Annotated[str, StringConstraints(pattern=defaults.QUEUE_PATTERN)] | None = None
    pool: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-][A-Za-z0-9_. -]{0,255}$")] | None = None
    pool_slots: Annotated[int, Field(ge=1)] | None = None
    executor: str | None = None
    cpu: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Cpu | None = None
    memory: Annotated[int, Field(gt=0)] | Memory | None = None
    gpu: Annotated[int, Field(ge=1)] | None = None
    node_selector: dict[LabelKey, Label] = Field(default_factory=dict)
    tolerate: dict[LabelKey, Label] = Field(default_factory=dict)


def executor_config(place: Place, *, alone: bool) -> dict[str, Any]:
    """Return the `executor_config` of a task on a KubernetesExecutor; empty if nothing differs from the pod template.

    :param alone: keep other pods with the label `MEASURING` off the node.
    :raises DeploymentRefused: when the Kubernetes client is not installed.
    """
    cpu = f"{place.cpu:g}" if isinstance(place.cpu, float) else place.cpu
    amounts = {"cpu": cpu, "memory": place.memory, GPU: place.gpu}
    resources = {name: str(amount) for name, amount in amounts.items() if amount is not None}
    if not (alone or resources or place.node_selector or place.tolerate):
        return {}
    try:
        from kubernetes.client import models as k8s
    except ImportError as error:
        raise DeploymentRefused(
            "The package `kubernetes`",
            "is missing on the DAG processor, and a KubernetesExecutor is configured",
            "Install apache-airflow-providers-cncf-kubernetes there too.",
            code="kubernetes_missing",
        ) from error
    # With requests equal to limits the pod is of the class Guaranteed: it is evicted last. With whole CPUs and the
    # kubelet's static policy it has these CPUs to itself.
    required = k8s.V1ResourceRequirements(requests=dict(resources), limits=dict(resources)) if resources else None
    tolerations = [k8s.V1Toleration(key=key, operator="Equal", value=value) for key, value in place.tolerate.items()]
    spec = k8s.V1PodSpec(
        containers=[k8s.V1Container(name="base", resources=required)],
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
