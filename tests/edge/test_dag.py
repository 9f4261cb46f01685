"""Factories of the DAGs, and the DAG files that call them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from airflow.utils.file import might_contain_dag

from airflow_onnx.alias_dag import move_alias_dag
from airflow_onnx.dag import release_dag, watch_dag

DAGS = sorted((Path(__file__).parents[2] / "dags").glob("*.py"))


@pytest.mark.parametrize("path", DAGS, ids=lambda path: path.stem)
def test_airflow_finds_the_dag_of_a_file_in_safe_mode(path: Path) -> None:
    assert might_contain_dag(str(path), safe_mode=True)
    assert runpy.run_path(str(path))["dag"].dag_id == path.stem


@pytest.mark.parametrize("factory", [release_dag, watch_dag, move_alias_dag])
def test_a_second_dag_with_another_id_has_the_same_tasks(factory: type) -> None:
    dag, other = factory(), factory("other", tags=["team"])
    assert (other.dag_id, other.tags) == ("other", {"team"})
    assert other.task_ids == dag.task_ids


def test_every_step_that_loads_the_model_gets_its_source() -> None:
    dag = release_dag()
    sources = [dag.get_task(name).model_source for name in ("export", "tune", "parity_latency")]
    assert [sorted(source) for source in sources] == [["factory", "factory_kwargs", "input_spec", "weights_key"]] * 3


def test_the_tasks_of_a_release_follow_each_other() -> None:
    dag = release_dag()
    task, path = dag.get_task("wait_for_training"), ["wait_for_training"]
    while task.downstream_list:
        # The teardown also follows its setup directly.
        task = min(task.downstream_list, key=lambda following: following.task_id == "clean_work")
        path.append(task.task_id)
    assert path == [
        "wait_for_training", "prepare_work", "export", "tune", "check", "parity_latency", "upload", "register",
        "approve", "promote", "clean_work",
    ]  # fmt: skip


def test_the_tasks_of_a_move_follow_each_other() -> None:
    dag = move_alias_dag()
    assert dag.get_task("verify").downstream_task_ids == {"approve"}
    assert dag.get_task("approve").downstream_task_ids == {"move"}
    assert dag.get_task("move").trigger_rule == "none_failed"
