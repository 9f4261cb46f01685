"""Placement: the deployment's setting in the real DAG file, in the serialized DAG and in a pod."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from kubernetes.client import ApiClient
from kubernetes.client import models as k8s

from airflow_onnx.deployment import placement
from airflow_onnx.deployment import settings as app_settings
from airflow_onnx.deployment.kubernetes import MEASURING
from tests.refusals import refused

ROOT = Path(__file__).parents[3]
PLACED = {
    "light": {"queue": "light"},
    "export": {"queue": "export", "pool": "exports", "pool_slots": 2, "cpu": 4, "memory": "8Gi"},
    "measure": {"queue": "measuring", "cpu": "4", "memory": "6.5Gi", "node_selector": {"pool": "quiet"}},
}
KUBERNETES = "CeleryExecutor,KubernetesExecutor"
# Parses the DAG file like the DAG processor and prints the tasks as the scheduler deserializes them. One process parses
# it with each of the given settings, because most of its time is the import of Airflow.
PARSE = """
import json, os, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
found = []
for variables in json.loads(sys.argv[1]):
    os.environ.update(variables)
    bag = DagBag("dags/release_onnx.py")
    tasks = {}
    for dag in bag.dags.values():
        dag = DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dag))))
        for task in dag.tasks:
            pod = task.executor_config.get("pod_override")
            tasks[task.task_id] = [task.queue, task.pool, task.pool_slots, bool(pod)]
    errors, kubernetes = list(bag.import_errors.values()), "kubernetes" in sys.modules
    found.append({"tasks": tasks, "errors": errors, "kubernetes": kubernetes})
print(json.dumps(found))
"""


def _set(patch: pytest.MonkeyPatch, *, placement: Any = None, executor: str = "") -> None:
    for name, value in _environment(placement, executor).items():
        patch.setenv(name, value)


def _environment(placement: Any = None, executor: str = "") -> dict[str, str]:
    text = placement if isinstance(placement, str) else json.dumps(placement or {})
    variables = {"AIRFLOW__ONNX_RELEASE__PLACEMENT": text}
    return variables | ({"AIRFLOW__CORE__EXECUTOR": executor} if executor else {})


def _parsed(tmp_path: Path, *settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the scheduler reads with each of the settings."""
    path = os.pathsep.join(str(ROOT / folder) for folder in ("include", "plugins"))
    own = {"AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": path, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run(
        [sys.executable, "-c", PARSE, json.dumps([_environment(**each) for each in settings])],
        cwd=ROOT,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(found) == len(settings)
    return found


def test_the_serialized_dag_has_the_placement_of_each_task(tmp_path: Path) -> None:
    plain, placed, pods = _parsed(tmp_path, {}, {"placement": PLACED}, {"placement": PLACED, "executor": KUBERNETES})
    assert plain["errors"] == placed["errors"] == pods["errors"] == []
    others = {name: task for name, task in plain["tasks"].items() if task != ["default", "default_pool", 1, False]}
    measuring = {name: ["default", "onnx_measure", 1, False] for name in ("tune", "parity_latency")}
    assert others == measuring | {"export": ["default", "onnx_export", 1, False]}
    assert placed["tasks"]["export"] == ["export", "exports", 2, False]
    assert placed["tasks"]["tune"] == placed["tasks"]["parity_latency"] == ["measuring", "onnx_measure", 1, False]
    light = set(placed["tasks"]) - {"export", "tune", "parity_latency"}
    assert len(light) == 8
    assert all(placed["tasks"][name] == ["light", "default_pool", 1, False] for name in light)
    # Pods are overridden where Kubernetes runs tasks. Elsewhere its client is not imported.
    assert {name for name, task in pods["tasks"].items() if task[3]} == {"export", "tune", "parity_latency"}
    assert [found["kubernetes"] for found in (plain, placed, pods)] == [False, False, True]


def test_a_mistake_is_an_import_error_of_the_dag(tmp_path: Path) -> None:
    mistakes = {
        "placement is '{'": "{",
        "Give a JSON object": '["light"]',
        "'heavy', is not a kind of task": {"heavy": {}},
        "'export_cuda', is not a kind of task": {"export_cuda": {}},
    }
    parsed = _parsed(tmp_path, *({"placement": placement} for placement in mistakes.values()))
    for why, found in zip(mistakes, parsed, strict=True):
        assert found["tasks"] == {}
        assert why in found["errors"][0]


@pytest.mark.parametrize(
    ("kind", "fields", "field", "value"),
    [
        ("light", {"queues": "x"}, "queues", "'x'"),
        ("light", {"queue": 5}, "queue", "5"),
        ("light", [], "Place", "[]"),
        ("export", {"queue": "a,b"}, "queue", "'a,b'"),
        ("export", {"queue": "x; rm -rf /"}, "queue", "'x; rm"),
        ("export", {"queue": "-q"}, "queue", "'-q'"),
        ("export", {"queue": "a\n"}, "queue", "'a"),
        ("export", {"queue": "q" * 500}, "queue", "'qqq"),
        ("measure", {"pool": ""}, "pool", "''"),
        ("measure", {"pool_slots": 0}, "pool_slots", "0"),
        ("measure", {"pool_slots": True}, "pool_slots", "True"),
        ("export", {"gpu": -1}, "gpu", "-1"),
        ("export", {"gpu": 0.5}, "gpu", "0.5"),
        ("measure", {"cpu": "four"}, "cpu", "'four'"),
        ("measure", {"cpu": "0"}, "cpu", "'0'"),
        ("measure", {"cpu": -1}, "cpu", "-1"),
        ("measure", {"cpu": 0}, "cpu", "0"),
        ("measure", {"cpu": float("nan")}, "cpu", "nan"),
        ("measure", {"memory": "8 GB"}, "memory", "'8 GB'"),
        ("measure", {"memory": "0Gi"}, "memory", "'0Gi'"),
        ("measure", {"node_selector": {"a b": "c"}}, "node_selector", "'a b'"),
        ("measure", {"tolerate": {"gpu": "no/label"}}, "tolerate", "'no/label'"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch, kind: str, fields: Any, field: str, value: str
) -> None:
    _set(monkeypatch, placement={kind: fields})
    with refused("wrong_placement", f"placement, '{kind}',", field, value, "docs/placement.md"):
        placement.arguments("light")


@pytest.mark.parametrize(("option", "value"), [("export_slots", "0"), ("measure_slots", "1.5")])
def test_wrong_slots_are_a_mistake_of_the_placement(monkeypatch: pytest.MonkeyPatch, option: str, value: str) -> None:
    monkeypatch.setenv(f"AIRFLOW__ONNX_RELEASE__{option.upper()}", value)
    with refused("wrong_option", option, value):
        placement.arguments("light")


def _pod(kind: str) -> dict[str, Any]:
    """Return the pod as Airflow's generator sends it to Kubernetes."""
    override = PodGenerator.from_obj(placement.arguments(kind)["executor_config"])
    base = k8s.V1Pod(
        metadata=k8s.V1ObjectMeta(labels={"tier": "airflow"}, namespace="airflow"),
        spec=k8s.V1PodSpec(
            service_account_name="worker",
            containers=[
                k8s.V1Container(
                    name="base",
                    volume_mounts=[k8s.V1VolumeMount(name="cache", mount_path="/cache")],
                    resources=k8s.V1ResourceRequirements(requests={"cpu": "100m", "memory": "1Gi"}),
                )
            ],
        ),
    )
    pod = PodGenerator.construct_pod(
        dag_id="release_onnx",
        task_id="a_task",
        pod_id="release-onnx",
        try_number=1,
        kube_image="airflow-onnx:1",
        date=datetime(2026, 1, 1, tzinfo=UTC),
        args=["airflow"],
        pod_override_object=override,
        base_worker_pod=base,
        namespace="airflow",
        scheduler_job_id="1",
        run_id="release__1",
    )
    sent: dict[str, Any] = ApiClient().sanitize_for_serialization(pod)
    return sent


def test_a_measuring_pod_has_an_anti_affinity_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, placement=PLACED, executor=KUBERNETES)
    pod = _pod("measure")
    (container,) = pod["spec"]["containers"]
    wanted = {"cpu": "4", "memory": "6.5Gi"}
    assert container["resources"] == {"requests": wanted, "limits": wanted}
    assert (container["image"], container["args"]) == ("airflow-onnx:1", ["airflow"])
    assert container["volumeMounts"] == [{"name": "cache", "mountPath": "/cache"}]
    assert pod["spec"]["nodeSelector"] == {"pool": "quiet"}
    assert pod["spec"]["serviceAccountName"] == "worker"
    (term,) = pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term == {"labelSelector": {"matchLabels": MEASURING}, "topologyKey": "kubernetes.io/hostname"}
    labels = pod["metadata"]["labels"]
    assert labels.items() >= {**MEASURING, "tier": "airflow", "task_id": "a_task"}.items()


def test_a_gpu_is_requested_and_its_taint_tolerated(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = {"export": {"gpu": 1}, "measure": {"gpu": 1, "tolerate": {"gpu": "yes"}}}
    _set(monkeypatch, placement=on_gpu, executor="KubernetesExecutor")
    pod = _pod("measure")
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert pod["spec"]["tolerations"] == [{"key": "gpu", "operator": "Equal", "value": "yes"}]
    assert "affinity" in pod["spec"]
    assert "affinity" not in _pod("export")["spec"]


def test_measuring_pods_have_the_anti_affinity_without_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, executor="KubernetesExecutor")
    assert placement.arguments("light")["executor_config"] == {}
    assert placement.arguments("measure")["executor_config"]["pod_override"].spec.affinity is not None


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_a_timeout_must_be_a_number_above_zero(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__MEASURE_LOCK_TIMEOUT_S", value)
    with refused("wrong_option", "measure_lock_timeout_s", f"'{value}'"):
        app_settings.measure_lock_timeout_s()


def test_options_have_the_types_that_airflow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE", "t")
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__CACHE_MAX_BYTES", "4096")
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__WATCH_POLL_S", "0.5")
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__FACTORY_PACKAGES", "our_models, radio.nets,")
    assert app_settings.allow_pickle() is True
    assert (app_settings.cache_max_bytes(), app_settings.watch_poll_s()) == (4096, 0.5)
    assert app_settings.factory_packages() == ("our_models", "radio.nets")


def test_a_relative_lock_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__MEASURE_LOCK", "locks/measure")
    with refused("wrong_option", "measure_lock", "locks/measure"):
        app_settings.measure_lock()


def test_the_chart_values_have_a_worker_set_for_each_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "values.yaml").read_text())
    settings, celery = values["config"]["onnx_release"], values["workers"]["celery"]
    _set(monkeypatch, placement=settings["placement"], executor=values["executor"])
    placed = {kind: placement.arguments(kind) for kind in placement.KINDS}
    served = {celery["queue"], *(workers["queue"] for workers in celery["sets"])}
    assert {one["queue"] for one in placed.values()} == served
    assert {one["executor"] for one in placed.values()} == {None}
    made = " ".join(values["migrateDatabaseJob"]["args"])
    assert all(f"pools set {one['pool']} " in made for one in placed.values() if one["pool"] != "default_pool")
