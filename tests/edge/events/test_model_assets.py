"""Asset events of promotions: their content, and a DAG that Airflow's scheduler starts by them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_onnx.events import model_assets
from airflow_onnx.events.figures import Figures
from airflow_onnx.events.model_assets import RELEASED_VERSIONS
from airflow_onnx.tracking.contract import Contract
from onnx_release.records import ModelVersion
from onnx_release.report.release_report import build_report
from tests.core.records import TRAINING, artifact, batch, benchmark, check, latency
from tests.refusals import refused

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "serve_released_model.py"
SERVED = {"batch_size": 1}
VERSION = ModelVersion(
    name="radio-onnx", version=5, sha256="ab" * 32, source="s3://models/radio-onnx/r/ab", training_run_id="r" * 32
)

PROMOTING_DAG = """
from airflow.sdk import DAG, task
from airflow_onnx.events import model_assets
from airflow_onnx.events.figures import Figures
from airflow_onnx.tracking.contract import Contract
from onnx_release.records import ModelVersion, TensorSpec

with DAG("promoting", schedule=None) as dag:

    @task(outlets=[model_assets.RELEASED_VERSIONS])
    def promote(**context):
        version = ModelVersion.from_dict(context["params"]["version"])
        contract = Contract(inputs=(TensorSpec(name="signal", dtype="float32", shape=("batch", 8)),), outputs=())
        model_assets.add_event(context, context["task"].outlets, version, contract, Figures(speedup_low=1.5))

    promote()
dag.params["version"] = %r
"""

# One pass of Airflow's scheduler over a database of its own, then the tasks that it would have started.
SCHEDULE = """
import json, os, sys
from airflow import settings
from airflow.models import import_all_models
from airflow.models.base import Base
from airflow.utils.db import synchronize_log_template

settings.initialize()
import_all_models()
Base.metadata.create_all(settings.engine)
synchronize_log_template()

from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dagrun import DagRun
from airflow.models.xcom import XComModel
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.definitions.dag import _run_task
from airflow.utils.session import create_session
from airflow.utils.sqlalchemy import prohibit_commit
from sqlalchemy import select

bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
assert not bag.import_errors, bag.import_errors
promoted = bag.dags["promoting"].test()
assert promoted.state == "success", promoted.state

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
    found = {"run_type": run.run_type, "asset": event.asset.name, "extra": event.extra}
for instance in instances:
    _run_task(ti=instance, task=bag.dags["serve_radio_onnx"].get_task(instance.task_id))
with create_session() as session:
    served = session.scalar(select(XComModel.value).where(XComModel.dag_id == "serve_radio_onnx"))
print("FOUND " + json.dumps({**found, "served": served}))
"""


def test_the_scheduler_starts_the_example_dag_with_the_promoted_version(tmp_path: Path) -> None:
    dags = tmp_path / "dags"
    dags.mkdir()
    shutil.copy(EXAMPLE, dags)
    (dags / "promoting.py").write_text(PROMOTING_DAG % VERSION.replace(alias="candidate").to_dict())
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path / 'airflow.db'}",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "include", ROOT / "plugins"))),
    }
    done = subprocess.run([sys.executable, "-c", SCHEDULE], env=env, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("FOUND "))
    assert (found["run_type"], found["asset"]) == ("asset_triggered", "models:/radio-onnx@candidate")
    assert found["extra"]["version"] == 5
    assert found["served"]["uri"] == VERSION.source
    assert found["served"]["inputs"] == [{"name": "signal", "dtype": "float32", "shape": ["batch", 8]}]


def test_an_event_has_the_contract_and_the_figures_and_only_a_promotion_has_one() -> None:
    report = build_report(TRAINING, artifact(), check(), benchmark(latency=latency(budget=SERVED)))
    events = OutletEventAccessors()
    context: Any = {"outlet_events": events}
    contract = Contract.of_artifact(artifact())
    model_assets.add_event(context, [RELEASED_VERSIONS], VERSION, contract)
    assert events[RELEASED_VERSIONS].asset_alias_events == [], "the alias stayed at another version"

    promoted = VERSION.replace(alias="candidate")
    model_assets.add_event(context, [RELEASED_VERSIONS], promoted, contract, Figures.of_report(report))
    (event,) = events[RELEASED_VERSIONS].asset_alias_events
    assert event.dest_asset_key.name == model_assets.model_asset("radio-onnx", "candidate").name
    assert (event.extra["alias"], event.extra["uri"]) == ("candidate", VERSION.source)
    assert [one["name"] for one in event.extra["contract"]["outputs"]] == ["y"]
    figures = {"mae": 3e-8, "speedup": 2.0, "speedup_low": 1.9, "p50_ms": 1.0, "speed_verdict": "passed"}
    assert event.extra["figures"].items() >= figures.items()


def test_a_speed_that_is_not_settled_has_only_its_lower_bound() -> None:
    measured = latency(budget=SERVED, verdict="not settled", batches=(batch(conclusive=False),))
    report = build_report(TRAINING, artifact(), check(), benchmark(latency=measured))
    figures = Figures.of_report(report)
    assert (figures.speedup, figures.speedup_low, figures.speedup_high) == (None, 1.9, None)


def test_a_report_without_measurements_has_no_figures() -> None:
    report = build_report(TRAINING, None, None, None)
    assert set(Figures.of_report(report).to_dict().values()) == {None}


def test_the_asset_of_a_wrong_name_is_refused() -> None:
    with refused("wrong_name"):
        model_assets.model_asset("radio onnx", "candidate")
    with refused("reserved_alias"):
        model_assets.model_asset("radio-onnx", "v5")
