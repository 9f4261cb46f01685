"""Placement in a real scheduler and API server: on creation, on a retry, after a clear."""

from __future__ import annotations

import pytest

from .embedded import RunningStack
from .test_release import Dag
from .test_watch import wait_for

pytestmark = pytest.mark.system

# In the folder `dags` beside this file.
DAG_ID, QUEUE = "placed", "exporting"


def test_a_task_keeps_the_queue_of_its_kind(stack: RunningStack) -> None:
    api = stack.api
    wait_for("Airflow has not found the DAG", lambda: api.call("GET", f"/dags/{DAG_ID}").ok)
    dag = Dag(stack, "once", DAG_ID).trigger()
    assert dag.end() == "success", dag.states()
    tries = api.get(f"{dag.path}/taskInstances/export/tries")["task_instances"]
    assert [(one["try_number"], one["queue"]) for one in tries] == [(1, QUEUE), (2, QUEUE)]
    assert api.get(f"{dag.path}/taskInstances/before")["queue"] == "default"
    assert dag.xcom("export") == QUEUE

    body = {"dry_run": False, "dag_run_id": dag.dag_run_id, "task_ids": ["export"], "only_failed": False}
    api.post(f"/dags/{DAG_ID}/clearTaskInstances", body)
    wait_for("the third try has not begun", lambda: api.get(f"{dag.path}/taskInstances/export")["try_number"] == 3)
    assert dag.end() == "success", dag.states()
    assert api.get(f"{dag.path}/taskInstances/export")["queue"] == QUEUE
    assert dag.xcom("export") == QUEUE
