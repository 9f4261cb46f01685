"""The examples of docs/own-dags.md and docs/operators.md in a real Airflow: they are parsed, and single steps run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlflow
import pytest

from airflow_onnx.dag_roles import DagRole
from airflow_onnx.hooks.mlflow import MlflowHook
from tests.edge.conftest import Services
from tests.edge.events.airflow_home import ROOT, run_in_airflow
from tests.edge.releasing import TAG, trained_run

EXAMPLES = ROOT / "docs" / "examples"
NAMES = ("second_model.py", "train_and_release.py", "export_and_check.py", "compare_and_time.py")
# The first DAGs run on a real MLflow server. The last one fails in its first task of a release: there is no such run.
SCRIPT = """
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.xcom import XComModel
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.serialization.serialized_objects import DagSerialization
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_onnx.dag_roles import DagRole, dag_ids

run = bag.dags["export_and_check"].test(run_conf={"training_run_id": os.environ["RUN"]})
found["states"] = {instance.task_id: instance.state for instance in run.get_task_instances()}
compared = bag.dags["compare_and_time"].test(run_conf={"training_run_id": os.environ["RUN"]})
found["compared"] = {instance.task_id: instance.state for instance in compared.get_task_instances()}
with create_session() as session:
    of_run = XComModel.key == "return_value", XComModel.dag_id == "export_and_check"
    values = session.execute(select(XComModel.task_id, XComModel.value).where(*of_run))
    found["returned"] = {task_id: value for task_id, value in values}
inside = bag.dags["train_and_release"].test()
found["inside"] = {instance.task_id: instance.state for instance in inside.get_task_instances()}
found["dags"] = sorted(bag.dags)
found["roles"] = {role.name: dag_ids(role) for role in DagRole}
"""


@pytest.fixture(scope="module")
def run_id(connections: None) -> str:
    MlflowHook("mlflow_default").activate()
    mlflow.set_experiment("own-dags")
    return trained_run(run_name="own")


@pytest.fixture(scope="module")
def found(services: Services, run_id: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from stack import setup

    home = tmp_path_factory.mktemp("airflow")
    dags = {name: (EXAMPLES / name).read_text() for name in NAMES}
    more = {"RUN": run_id, "AIRFLOW__ONNX_RELEASE__STAGING_URI": (home / "staging").as_uri()}
    return run_in_airflow(home, dags, SCRIPT, **more, **setup.connection_environment(services.context))


def test_the_examples_are_parsed_and_the_pages_find_them_by_their_roles(found: dict[str, Any]) -> None:
    assert found["dags"] == [
        "compare_and_time",
        "export_and_check",
        "release_churn",
        "train_and_release",
        "watch_churn",
    ]
    roles = {"RELEASE": ["release_churn"], "RELEASE_TASKS": ["train_and_release"], "WATCH": ["watch_churn"]}
    assert found["roles"] == {role.name: [] for role in DagRole} | roles


def test_an_export_without_a_release_writes_nothing_to_the_training_run(found: dict[str, Any], run_id: str) -> None:
    assert found["states"] == {"wait": "success", "export": "success", "check": "success"}, found["log"][-3000:]
    returned = found["returned"]
    assert returned["check"]["passed"]
    assert returned["check"]["sha256"] == returned["export"]["sha256"]
    assert Path(returned["export"]["staging_uri"].removeprefix("file://"), "model.onnx").exists()
    run = mlflow.MlflowClient().get_run(run_id)
    assert not [name for name in run.data.tags if name.startswith(f"{TAG}.")]
    assert mlflow.MlflowClient().list_artifacts(run_id, TAG) == []


def test_a_comparison_needs_no_store_and_no_release(found: dict[str, Any]) -> None:
    assert set(found["compared"].values()) == {"success"}, found["log"][-3000:]


def test_a_release_inside_another_dag_gets_the_run_of_its_training(found: dict[str, Any]) -> None:
    inside = found["inside"]
    assert (inside["train"], inside["wait_for_training"], inside["clean_work"]) == ("success", "failed", "success")
    assert (inside["export"], inside["deploy"]) == ("upstream_failed", "upstream_failed")
    assert "0123456789abcdef" * 2 in found["log"]


def test_the_pages_show_the_examples() -> None:
    pages = "".join((ROOT / "docs" / name).read_text() for name in ("own-dags.md", "operators.md"))
    blocks = [_code(block) for block in re.findall(r"```python\n(.*?)```", pages, re.DOTALL)]
    assert [name for name in NAMES if _code((EXAMPLES / name).read_text()) not in blocks] == []


def _code(text: str) -> str:
    """Return the code after the docstring and the future import of a DAG file."""
    return text.partition("from __future__ import annotations\n")[2].strip() or text.strip()
