"""Creation of the pools at the start of a component, and the order in which Airflow's scheduler queues tasks then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.edge.events.airflow_home import ROOT, run_in_airflow

DAGS = {name: (ROOT / "dags" / name).read_text() for name in ("release_onnx.py", "watch_training.py")}
# With each of the given settings, a component starts twice. Between the two a person changes the slots of each pool.
CREATE = """
from airflow.jobs.job import Job
from airflow.models.pool import Pool
from airflow.utils.session import create_session
from sqlalchemy import delete, select

found["made"], found["kept"] = [], []
for settings in json.loads(os.environ["EACH"]):
    os.environ.update(settings)
    Job()
    with create_session() as session:
        found["made"].append({pool.pool: pool.slots for pool in session.scalars(select(Pool))})
        for pool in session.scalars(select(Pool)):
            pool.slots = 5
    Job()
    with create_session() as session:
        found["kept"].append([pool.slots for pool in session.scalars(select(Pool))])
        session.execute(delete(Pool))
"""
# Six releases are ready to export, six to compare, and one to check. Then a decision of the watch becomes ready. The
# scheduler has the executor's four slots to give away.
QUEUE = """
from datetime import UTC, datetime

from airflow.dag_processing.dagbag import sync_bag_to_db
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dagbundle import DagBundleModel
from airflow.models.serialized_dag import SerializedDagModel
from airflow.utils.db import add_default_pool_if_not_exists
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType

add_default_pool_if_not_exists()
job = Job()
with create_session() as session:
    session.add(DagBundleModel(name="bundle"))
sync_bag_to_db(bag, "bundle", None)
ready = ["export", "parity_latency"] * 6 + ["check", "start_releases"]
with create_session() as session:
    for number, task_id in enumerate(ready):
        dag_id = "watch_training" if task_id == "start_releases" else "release_onnx"
        dag = SerializedDagModel.get(dag_id, session=session).dag
        day = datetime(2026, 1, 1 + number, tzinfo=UTC)
        run = dag.create_dagrun(
            run_id=f"run-{number:02}", logical_date=day, run_after=day, run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST, state=DagRunState.RUNNING, session=session,
        )
        run.get_task_instance(task_id, session=session).state = TaskInstanceState.SCHEDULED
scheduler = SchedulerJobRunner(job)
with create_session() as session:
    queued = []
    # The scheduler looks again, without the full pools, while the executor has free slots.
    for _ in range(3):
        queued += scheduler._executable_task_instances_to_queued(4 - len(queued), session=session)
    found["queued"] = [instance.task_id for instance in queued]
"""


def found_in(home: Path, script: str, **variables: str) -> dict[str, Any]:
    return run_in_airflow(home, DAGS, script, AIRFLOW__CORE__PLUGINS_FOLDER=str(ROOT / "plugins"), **variables)


def test_a_component_creates_the_missing_pools_and_changes_no_existing_one(tmp_path: Path) -> None:
    # Four slots of the executor: one for measuring, one for exports, and two for all others.
    local = {"AIRFLOW__CORE__EXECUTOR": "LocalExecutor", "AIRFLOW__CORE__PARALLELISM": "4"}
    celery = {"AIRFLOW__CORE__EXECUTOR": "CeleryExecutor", "AIRFLOW__ONNX_RELEASE__EXPORT_SLOTS": "3"}
    placed = {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CORE__PARALLELISM": "32",
        "AIRFLOW__ONNX_RELEASE__EXPORT_SLOTS": "",
        "AIRFLOW__ONNX_RELEASE__MEASURE_SLOTS": "7",
        "AIRFLOW__ONNX_RELEASE__PLACEMENT": json.dumps({"measure": {"pool": "quiet"}}),
    }
    found = found_in(tmp_path, CREATE, EACH=json.dumps([local, celery, placed]))
    assert found["made"] == [
        {"onnx_measure": 1, "onnx_export": 1, "onnx_watch": 2},
        {"onnx_measure": 1, "onnx_export": 3, "onnx_watch": 2},
        {"quiet": 7, "onnx_export": 128, "onnx_watch": 2},
    ]
    assert found["kept"] == [[5, 5, 5]] * 3


def test_the_watch_is_first_and_tasks_that_take_long_leave_two_slots(tmp_path: Path) -> None:
    options = {"AIRFLOW__CORE__EXECUTOR": "LocalExecutor", "AIRFLOW__CORE__PARALLELISM": "4"}
    found = found_in(tmp_path, QUEUE, **options)
    assert found["queued"] == ["start_releases", "parity_latency", "check", "export"]
