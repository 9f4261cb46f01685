"""Events in a real Airflow: a DAG that the scheduler starts, notifiers and metrics at the end of a release."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.edge.events.airflow_home import ROOT, run_in_airflow

EXAMPLE = ROOT / "docs" / "examples" / "serve_released_model.py"
PROMOTING = """
from airflow.sdk import DAG, task
from airflow_onnx.events import model_assets
from airflow_onnx.events.figures import Figures
from onnx_release.records import Contract
from onnx_release.records import ModelVersion, TensorSpec

VERSION = ModelVersion(name="radio-onnx", version=5, sha256="ab" * 32, source="s3://models/radio-onnx/r/ab",
                       training_run_id="r" * 32, alias="candidate")

with DAG("promoting", schedule=None) as dag:

    @task(outlets=[model_assets.RELEASED_VERSIONS])
    def promote(**context):
        contract = Contract(inputs=(TensorSpec(name="signal", dtype="float32", shape=("batch", 8)),), outputs=())
        model_assets.add_event(context, context["task"].outlets, VERSION, contract, Figures(speedup_low=1.5))

    promote()
"""
RELEASING = """
import os
from airflow.sdk import BaseNotifier
from airflow_onnx.dag import release_dag

class Writer(BaseNotifier):
    template_fields = ("text",)

    def __init__(self, text):
        super().__init__()
        self.text = text

    def notify(self, context):
        with open(os.environ["AIRFLOW_HOME"] + "/notes", "a") as file:
            file.write(self.text + chr(10))

def raising(context):
    raise RuntimeError("the chat is down")

refused = Writer("{{ release.status }} {{ release.task }} {{ release.code }}: {{ release.headline }}")
dag = release_dag("releasing", on_refused=[raising, refused], on_failed=Writer("failed"), on_released=raising)
"""
# One pass of Airflow's scheduler, and the tasks that it would have started. Then a release with a wrong parameter.
SCRIPT = """
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dagrun import DagRun
from airflow.models.xcom import XComModel
from airflow.sdk.definitions.dag import _run_task
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics.stats_utils import get_stats_factory
from airflow.utils.session import create_session
from airflow.utils.sqlalchemy import prohibit_commit
from sqlalchemy import select

assert bag.dags["promoting"].test().state == "success"
with create_session() as session:
    runner = SchedulerJobRunner(Job())
    with prohibit_commit(session) as guard:
        runner._create_dagruns_for_dags(guard, session)
        runner._start_queued_dagruns(session)
        guard.commit()
with create_session() as session:
    [run] = session.scalars(select(DagRun).where(DagRun.dag_id == "serve_radio_onnx"))
    [event] = run.consumed_asset_events
    instances = run.task_instances
    found |= {"run_type": run.run_type, "asset": event.asset.name, "extra": event.extra}
for instance in instances:
    _run_task(ti=instance, task=bag.dags["serve_radio_onnx"].get_task(instance.task_id))
with create_session() as session:
    found["served"] = session.scalar(select(XComModel.value).where(XComModel.dag_id == "serve_radio_onnx"))

# As Airflow does at the start of each task.
stats.initialize(factory=get_stats_factory(), export_legacy_names=True)
both = {"training_run_id": "f" * 32, "model_uri": "models:/m-1"}
released = bag.dags["releasing"].test(run_conf=both)
found["state"] = released.state
found["tasks"] = {instance.task_id: instance.state for instance in released.get_task_instances()}
with open(os.environ["AIRFLOW_HOME"] + "/notes") as file:
    found["notes"] = file.read().splitlines()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the results, and under `metrics` the packets that a StatsD server gets."""
    dags = {EXAMPLE.name: EXAMPLE.read_text(), "promoting.py": PROMOTING, "releasing.py": RELEASING}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        metrics = {
            "AIRFLOW__METRICS__STATSD_ON": "True",
            "AIRFLOW__METRICS__STATSD_PORT": str(server.getsockname()[1]),
            "AIRFLOW__METRICS__METRICS_ALLOW_LIST": "onnx_release",
        }
        results = run_in_airflow(tmp_path_factory.mktemp("airflow"), dags, SCRIPT, **metrics)
        server.setblocking(False)
        packets: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packets.append(server.recv(1024).decode())
    return results | {"metrics": packets}


def test_the_scheduler_starts_the_example_dag_with_the_promoted_version(found: dict[str, Any]) -> None:
    assert (found["run_type"], found["asset"]) == ("asset_triggered", "models:/radio-onnx@candidate")
    assert found["extra"]["version"] == 5
    assert found["served"]["uri"] == "s3://models/radio-onnx/r/ab"
    assert (found["served"]["version"], found["served"]["sha256"]) == (5, "ab" * 32)
    assert found["served"]["figures"]["speedup_low"] == 1.5
    assert found["served"]["inputs"] == [{"name": "signal", "dtype": "float32", "shape": ["batch", 8]}]


def test_a_refused_release_calls_its_notifiers_once_and_an_error_in_one_changes_nothing(found: dict[str, Any]) -> None:
    assert (found["state"], found["tasks"]["clean_work"]) == ("failed", "success")
    assert found["tasks"]["wait_for_training"] == "failed"
    [note] = found["notes"]
    assert note.startswith("refused wait_for_training run_or_model: Refused: ")
    assert "The notifier raising failed" in found["log"]
    assert "the chat is down" in found["log"]


def test_a_statsd_server_gets_the_metrics_of_the_release(found: dict[str, Any]) -> None:
    pytest.importorskip("statsd")
    counters = [packet for packet in found["metrics"] if packet.endswith("|c")]
    assert counters == ["airflow.onnx_release.refused:1|c", "airflow.onnx_release.refused.run_or_model:1|c"]
    timers = [packet.partition(":")[0] for packet in found["metrics"] if packet.endswith("|ms")]
    assert "airflow.onnx_release.wall.refused" in timers


def test_the_teardown_is_the_only_task_with_the_callback(tmp_path: Path) -> None:
    from airflow_onnx.dag import release_dag

    dag = release_dag("release_onnx")
    with_callback = {task.task_id for task in dag.tasks if task.on_success_callback or task.on_failure_callback}
    assert with_callback == {"clean_work"}
    with pytest.raises(TypeError, match="on_refused has 'slack'"):
        release_dag("other", on_refused=["slack"])  # type: ignore[list-item]
