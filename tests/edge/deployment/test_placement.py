"""Where tasks run: what the deployment's setting makes of the real DAG file, of a DAG run's records and of a pod."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from airflow.sdk import Param
from kubernetes.client import ApiClient
from kubernetes.client import models as k8s

from airflow_onnx.deployment import cluster_policy, placement
from airflow_onnx.deployment import settings as app_settings
from airflow_onnx.deployment.kubernetes import MEASURING
from onnx_release.errors import Refused

ROOT = Path(__file__).parents[3]
PLACED = {
    "light": {"queue": "light"},
    "export": {"queue": "export", "pool": "exports", "pool_slots": 2, "cpu": 4, "memory": "8Gi"},
    "measure": {"queue": "measuring", "cpu": "4", "memory": "6.5Gi", "node_selector": {"pool": "quiet"}},
    "export_cuda": {"queue": "gpu", "gpu": 1},
    "measure_cuda": {"queue": "gpu-quiet", "pool": "onnx_measure_gpu", "gpu": 1, "tolerate": {"gpu": "yes"}},
}
KUBERNETES = "CeleryExecutor,KubernetesExecutor"
# Parses the DAG file as the DAG processor does, and prints what the scheduler would read back.
PARSE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
bag = DagBag("dags/release_onnx.py")
tasks = {}
for dag in bag.dags.values():
    dag = DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dag))))
    for task in dag.tasks:
        pod = task.executor_config.get("pod_override")
        tasks[task.task_id] = [task.queue, task.pool, task.pool_slots, bool(pod)]
errors, kubernetes = list(bag.import_errors.values()), "kubernetes" in sys.modules
print(json.dumps({"tasks": tasks, "errors": errors, "kubernetes": kubernetes}))
"""


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, placement=PLACED)


def _set(patch: pytest.MonkeyPatch, *, placement: Any = None, choices: str = "", executor: str = "") -> None:
    for name, value in _environment(placement, choices, executor).items():
        patch.setenv(name, value)


def _environment(placement: Any = None, choices: str = "", executor: str = "") -> dict[str, str]:
    text = placement if isinstance(placement, str) else json.dumps(placement or {})
    variables = {"AIRFLOW__ONNX_RELEASE__PLACEMENT": text, "AIRFLOW__ONNX_RELEASE__QUEUE_CHOICES": choices}
    return variables | ({"AIRFLOW__CORE__EXECUTOR": executor} if executor else {})


def _parsed(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    path = os.pathsep.join(str(ROOT / folder) for folder in ("include", "plugins"))
    own = {"AIRFLOW_HOME": str(tmp_path), "PYTHONPATH": path, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run(
        [sys.executable, "-c", PARSE],
        cwd=ROOT,
        env=os.environ | own | _environment(**settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_without_settings_only_measuring_stands_apart(tmp_path: Path) -> None:
    found = _parsed(tmp_path)
    assert found["errors"] == []
    apart = {name: task for name, task in found["tasks"].items() if task != ["default", "default_pool", 1, False]}
    assert apart == {name: ["default", "onnx_measure", 1, False] for name in ("tune", "parity_latency")}
    assert not found["kubernetes"]


def test_the_serialized_dag_has_each_task_in_its_place(tmp_path: Path) -> None:
    found = _parsed(tmp_path, placement=PLACED)
    assert found["errors"] == []
    assert found["tasks"]["export"] == ["export", "exports", 2, False]
    assert found["tasks"]["tune"] == found["tasks"]["parity_latency"] == ["measuring", "onnx_measure", 1, False]
    light = set(found["tasks"]) - {"export", "tune", "parity_latency"}
    assert len(light) == 7
    assert all(found["tasks"][name] == ["light", "default_pool", 1, False] for name in light)
    assert not found["kubernetes"], "hints for Kubernetes cost the parser nothing where nobody runs it"


def test_pods_are_overridden_where_kubernetes_runs_tasks(tmp_path: Path) -> None:
    found = _parsed(tmp_path, placement=PLACED, executor=KUBERNETES)
    assert found["errors"] == []
    assert {name for name, task in found["tasks"].items() if task[3]} == {"export", "tune", "parity_latency"}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"placement": "{"}, "placement: is '{'"),
        ({"placement": '["light"]'}, "Give a JSON object"),
        ({"placement": {"heavy": {}}}, "is no kind of task: 'heavy'"),
        ({"choices": "gpu,a b"}, "queue_choices: names 'a b'"),
        ({"choices": "auto"}, "'auto' is none"),
    ],
)
def test_a_mistake_is_an_import_error_of_the_dag(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    found = _parsed(tmp_path, **settings)
    assert found["tasks"] == {}
    assert why in found["errors"][0]


@pytest.mark.parametrize(
    ("kind", "given", "why"),
    [
        ("light", {"queues": "x"}, "queues is 'x', not a field"),
        ("light", {"queue": 5}, "queue is 5, not of type str"),
        ("light", [], "is \\[\\], not a dict"),
        ("export", {"queue": "a,b"}, "queue is 'a,b'.*must match"),
        ("export", {"queue": "x; rm -rf /"}, "queue is 'x; rm"),
        ("export", {"queue": "-q"}, "queue is '-q'"),
        ("export", {"queue": "a\n"}, "queue is"),
        ("export", {"queue": "q" * 500}, "queue is"),
        ("export", {"queue": "auto"}, "stands for the deployment's choice"),
        ("measure", {"pool": ""}, "pool is ''"),
        ("measure", {"pool_slots": 0}, "pool_slots is 0.*1 or more"),
        ("measure", {"pool_slots": True}, "pool_slots is True, not of type int"),
        ("export_cuda", {"gpu": -1}, "gpu is -1"),
        ("export_cuda", {"gpu": 0.5}, "gpu is 0.5, not of type int"),
        ("measure", {"cpu": "four"}, "cpu is 'four'"),
        ("measure", {"cpu": -1}, "cpu is -1"),
        ("measure", {"cpu": 0}, "cpu is 0"),
        ("measure", {"cpu": float("nan")}, "cpu is nan"),
        ("measure", {"memory": "8 GB"}, "memory is '8 GB'"),
        ("measure", {"memory": "0Gi"}, "memory is '0Gi'"),
        ("measure", {"node_selector": {"a b": "c"}}, "node_selector has 'a b'"),
        ("measure", {"tolerate": {"gpu": "no/label"}}, "tolerate has 'gpu': 'no/label'"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(
    monkeypatch: pytest.MonkeyPatch, kind: str, given: Any, why: str
) -> None:
    _set(monkeypatch, placement={kind: given})
    with pytest.raises(Refused, match=f"(?s)placement, '{kind}': .*{why}.*docs/placement.md"):
        placement.arguments("light")


def _pod(kind: str) -> dict[str, Any]:
    """The pod that the executor would send to Kubernetes, made by Airflow's own generator."""
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


def test_the_pod_of_a_measuring_task_keeps_others_from_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_gpu_is_asked_for_and_its_taint_tolerated(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, placement=PLACED, executor="KubernetesExecutor")
    pod = _pod("measure_cuda")
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert pod["spec"]["tolerations"] == [{"key": "gpu", "operator": "Equal", "value": "yes"}]
    assert "affinity" in pod["spec"]
    assert "affinity" not in _pod("export_cuda")["spec"]


def test_measuring_pods_stand_alone_without_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, executor="KubernetesExecutor")
    assert placement.arguments("light")["executor_config"] == {}
    assert placement.arguments("measure")["executor_config"]["pod_override"].spec.affinity is not None


def _record(operator: str = "OnnxExportOperator", dag_id: str = "release_onnx") -> SimpleNamespace:
    """A task's record as Airflow hands it to the hook: what the DAG file says is in it."""
    return SimpleNamespace(
        operator=operator, dag_id=dag_id, task_id="t", run_id="r", queue="export", pool="exports", pool_slots=2,
        executor=None, executor_config={},
    )  # fmt: skip


def _after(record: SimpleNamespace, conf: Any) -> SimpleNamespace:
    cluster_policy.task_instance_mutation_hook(record, None if conf == "no run" else SimpleNamespace(conf=conf))
    return record


def test_a_release_on_cuda_goes_to_its_own_place(placed: None) -> None:
    export = _after(_record(), {"device": "cuda"})
    assert (export.queue, export.pool, export.pool_slots) == ("gpu", "exports", 2)
    for operator in ("OnnxTuneOperator", "OnnxParityLatencyOperator"):
        measure = _after(_record(operator), {"device": "cuda"})
        assert (measure.queue, measure.pool) == ("gpu-quiet", "onnx_measure_gpu")


def test_a_chosen_queue_comes_before_that_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, placement=PLACED, choices="big, gpu-b")
    conf = {"device": "cuda", "export_queue": "gpu-b", "measure_queue": "auto"}
    assert _after(_record(), conf).queue == "gpu-b"
    assert _after(_record("OnnxTuneOperator"), conf).queue == "gpu-quiet"


@pytest.mark.parametrize(
    ("record", "conf"),
    [
        (_record("OnnxUploadToS3Operator"), {"device": "cuda"}),
        (_record(dag_id="another"), {"device": "cuda"}),
        (_record(), {"device": "auto"}),
        (_record(), {"export_queue": "nobody-listens", "measure_queue": "big"}),
        (_record(), {"export_queue": ["big"], "device": {"cuda": 1}}),
        (_record(), "no run"),
        (_record(), None),
        (_record(), ["export_queue"]),
    ],
)
def test_whatever_else_a_run_says_the_record_stays(monkeypatch: pytest.MonkeyPatch, record: Any, conf: Any) -> None:
    _set(monkeypatch, placement=PLACED, choices="big")
    before = dict(vars(record))
    assert vars(_after(record, conf)) == before


def test_the_hook_raises_nothing_for_a_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _set(monkeypatch, placement={"export_cuda": {"queue": "a b"}})
    assert _after(_record(), {"device": "cuda"}).queue == "export"
    assert "stays where the DAG puts it" in caplog.text


def test_a_task_on_another_queue_than_asked_for_is_refused() -> None:
    for asked in ("", "auto", "gpu"):
        placement.require_queue(asked, "gpu")
    with pytest.raises(Refused, match=r"queue 'big': was asked for, and this task was sent to 'gpu'.*policy"):
        placement.require_queue("big", "gpu")


def test_the_form_offers_the_deployments_queues_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, choices="gpu-a,gpu-b")
    params: dict[str, Param] = runpy.run_path(str(ROOT / "dags" / "release_onnx.py"))["PARAMS"]
    for name in ("export_queue", "measure_queue"):
        assert params[name].schema["enum"] == ["auto", "gpu-a", "gpu-b"]
        assert params[name].resolve("gpu-a") == "gpu-a"
        with pytest.raises(Exception, match="'gpu-c' is not one of"):
            params[name].resolve("gpu-c")


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_a_timeout_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__MEASURE_LOCK_TIMEOUT_S", value)
    with pytest.raises(Refused, match=f"measure_lock_timeout_s: is '{value}'"):
        app_settings.measure_lock_timeout_s()


def test_a_lock_without_a_whole_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__MEASURE_LOCK", "locks/measure")
    with pytest.raises(Refused, match="measure_lock: is 'locks/measure'"):
        app_settings.measure_lock()


def test_the_values_for_the_chart_place_tasks_where_somebody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "values.yaml").read_text())
    settings, celery = values["config"]["onnx_release"], values["workers"]["celery"]
    _set(monkeypatch, placement=settings["placement"], choices=settings["queue_choices"], executor=values["executor"])
    asked = {kind: placement.arguments(kind) for kind in placement.KINDS}
    listened_to = {celery["queue"], *(workers["queue"] for workers in celery["sets"])}
    on_celery = {one["queue"] for kind, one in asked.items() if one["executor"] is None}
    assert on_celery <= listened_to
    assert set(app_settings.queue_choices()) <= listened_to
    made = " ".join(values["migrateDatabaseJob"]["args"])
    assert all(f"pools set {one['pool']} " in made for one in asked.values() if one["pool"] != "default_pool")
    assert [one["executor"] for kind, one in asked.items() if kind in placement.ON_CUDA.values()] == [
        "KubernetesExecutor"
    ] * 2
