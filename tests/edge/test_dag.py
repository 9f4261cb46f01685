"""Factories of the DAGs, and the DAG files that call them."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, conf
from airflow.sdk.definitions.param import process_params
from airflow.sdk.exceptions import DuplicateTaskIdFound
from airflow.utils.file import might_contain_dag

from airflow_onnx.alias_dag import move_alias_dag
from airflow_onnx.dag import release_dag, release_task_group, watch_dag
from airflow_onnx.dag_roles import DagRole
from airflow_onnx.leftovers_dag import collect_leftovers_dag
from airflow_onnx.rehearsal_dag import rehearse_runtime_dag
from airflow_onnx.retirement_dag import retire_versions_dag
from airflow_onnx.verification_dag import verify_releases_dag
from onnx_release.limits import ParityLimits
from tests.refusals import refused

DAGS = sorted((Path(__file__).parents[2] / "dags").glob("*.py"))


@pytest.mark.parametrize("path", DAGS, ids=lambda path: path.stem)
def test_airflow_finds_the_dag_of_a_file_in_safe_mode(path: Path) -> None:
    assert might_contain_dag(str(path), safe_mode=True)
    assert runpy.run_path(str(path))["dag"].dag_id == path.stem


@pytest.mark.parametrize(
    ("factory", "role"),
    [
        (release_dag, DagRole.RELEASE),
        (partial(watch_dag, release_dag_id="release"), DagRole.WATCH),
        (move_alias_dag, DagRole.MOVE_ALIAS),
        (collect_leftovers_dag, DagRole.COLLECT_LEFTOVERS),
        (rehearse_runtime_dag, DagRole.REHEARSE_RUNTIME),
        (verify_releases_dag, DagRole.VERIFY_RELEASES),
        (retire_versions_dag, DagRole.RETIRE_VERSIONS),
    ],
)
def test_two_dags_of_a_factory_differ_in_their_ids_alone_and_have_its_role(factory: Any, role: DagRole) -> None:
    dag, other = factory("one"), factory("other", tags=["team"])
    assert (other.dag_id, other.tags) == ("other", {"team", role})
    assert other.task_ids == dag.task_ids


def test_the_arguments_of_the_factory_are_the_defaults_of_the_form_and_reach_the_tasks() -> None:
    asset = Asset("churn")
    dag = release_dag(
        "release_churn", model_name="churn-onnx", bucket="acme-models", prefix="churn", speedup_min=1.2,
        placement={"measure": {"queue": "measuring"}}, outlets=[asset], default_args={"owner": "churn"},
    )  # fmt: skip
    names = ("model_name", "bucket", "prefix", "speedup_min", "mae_max")
    assert [dag.params[name] for name in names] == ["churn-onnx", "acme-models", "churn", 1.2, ParityLimits().mae_max]
    assert (dag.get_task("parity_latency").queue, dag.get_task("export").queue) == ("measuring", "default")
    assert asset in dag.get_task("promote").outlets
    assert {task.owner for task in dag.tasks} == {"churn"}


def test_a_release_in_another_dag_is_a_group_and_its_source_is_a_task() -> None:
    with DAG("train_and_release", schedule=None, params={"alias": "nightly", "own": 1}) as dag:
        train = EmptyOperator(task_id="train")
        group = release_task_group(training_run_id=train.output, bucket="models", alias="candidate")
        train >> group >> EmptyOperator(task_id="deploy")
    assert dag.tags == {DagRole.RELEASE_TASKS}
    wait = dag.get_task("wait_for_training")
    assert wait.upstream_task_ids == {"train"}
    assert dag.get_task("deploy").upstream_task_ids == {"promote"}
    assert (dag.params["alias"], dag.params["bucket"], dag.params["own"]) == ("nightly", "models", 1)
    assert wait.retries == 3
    with pytest.raises(DuplicateTaskIdFound), dag:
        release_task_group("again", bucket="models")


@pytest.mark.parametrize(
    ("make", "code", "part"),
    [
        (lambda: release_dag("a", mae_mx=1e-4), "unknown_parameter", "Use 'mae_max'"),
        (lambda: release_dag("a", mae_max="small"), "wrong_parameter", "'mae_max'"),
        (lambda: release_dag("a", prefix="../other"), "wrong_parameter", "'prefix'"),
        (lambda: release_dag("a", alias="latest"), "reserved_alias", "'latest'"),
        (lambda: release_dag("a", schedule="@daily"), "missing_value", "model_uri"),
        (lambda: release_dag("a", placement={"measure": {"que": "x"}}), "wrong_placement", "que"),
        (lambda: watch_dag("a"), "missing_value", "release_dag_id"),
        (lambda: watch_dag("a", routes=[{"experiment": "x"}]), "wrong_parameter", "routes[0]"),
        (lambda: watch_dag("a", routes=["x"], release_dag_id="r"), "wrong_parameter", "routes[0]"),
        (lambda: collect_leftovers_dag("a", grace_h=0), "wrong_parameter", "'grace_h'"),
        (lambda: collect_leftovers_dag("a", dry_run="no"), "wrong_parameter", "'dry_run'"),
        (lambda: collect_leftovers_dag("a", prefix="../b"), "wrong_parameter", "'prefix'"),
        (lambda: retire_versions_dag("a", min_age_days=0.5), "wrong_parameter", "'min_age_days'"),
        (lambda: retire_versions_dag("a", keep_newest=-1), "wrong_parameter", "'keep_newest'"),
        (lambda: retire_versions_dag("a", models=["a", ""]), "wrong_parameter", "'models[1]'"),
        (lambda: watch_dag("a", release_dag_id="r", expriments=["x"]), "unknown_parameter", "Use 'experiments'"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_file_is_parsed(make: Any, code: str, part: str) -> None:
    with refused(code, part):
        make()


def test_a_schedule_releases_the_given_model() -> None:
    dag = release_dag("a", schedule="@daily", model_uri="models:/radio@new", bucket="models")
    assert dag.timetable.can_be_scheduled


@contextmanager
def _option(name: str, value: str | None) -> Iterator[None]:
    """Set an option of airflow.cfg."""
    section = "onnx_release"
    if value is not None:
        conf.read_dict({section: {name: value}})
    yield
    if value is not None:
        conf.remove_option(section, name)


# The order of docs/options.md: each line has a value more than the one after it.
@pytest.mark.parametrize(
    ("given", "argument", "environment", "option", "expected"),
    [
        ({"bucket": "of-conf"}, "of-argument", "of-environment", "of-option", "of-conf"),
        ({}, "of-argument", "of-environment", "of-option", "of-argument"),
        ({}, None, "of-environment", "of-option", "of-environment"),
        ({}, None, None, "of-option", "of-option"),
        ({}, None, None, None, None),
    ],
)
def test_the_order_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, given: Any, argument: str, environment: str, option: str, expected: str
) -> None:
    if environment:
        monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__BUCKET", environment)
    else:
        monkeypatch.delenv("AIRFLOW__ONNX_RELEASE__BUCKET", raising=False)
    with _option("bucket", option):
        dag = release_dag("a", bucket=argument)
    assert process_params(dag, dag.get_task("upload"), given, suppress_exception=False)["bucket"] == expected


def test_every_step_that_loads_the_model_gets_its_source() -> None:
    dag = release_dag("release")
    sources = [dag.get_task(name).model_source for name in ("export", "tune", "parity_latency")]
    assert [sorted(source) for source in sources] == [["factory", "factory_kwargs", "input_spec", "weights_key"]] * 3


def test_the_tasks_of_a_release_follow_each_other() -> None:
    dag = release_dag("release")
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
    dag = move_alias_dag("move")
    assert dag.get_task("verify").downstream_task_ids == {"approve"}
    assert dag.get_task("approve").downstream_task_ids == {"move"}
    assert dag.get_task("move").trigger_rule == "none_failed"


def test_a_verification_moves_nothing_and_has_no_schedule_by_default() -> None:
    dag = verify_releases_dag("verify", at_once=3)
    assert (dag.params["on_failure"], dag.params["models"], dag.timetable.can_be_scheduled) == ("nothing", [], False)
    assert dag.get_task("verify").max_active_tis_per_dag == 3
    assert dag.get_task("summarize").upstream_task_ids == {"list", "verify", "roll_back"}
    weekly = verify_releases_dag("weekly", schedule="@weekly", buckets=["models"], on_failure="roll_back")
    assert (weekly.params["buckets"], weekly.params["on_failure"]) == (["models"], "roll_back")
    with refused("wrong_parameter", "'on_failure'"):
        verify_releases_dag("a", on_failure="maybe")


def test_a_collection_only_lists_and_has_no_schedule_by_default() -> None:
    dag = collect_leftovers_dag("collect", bucket="models")
    assert (dag.params["dry_run"], dag.params["grace_h"], dag.timetable.can_be_scheduled) == (True, 24.0, False)
    assert collect_leftovers_dag("weekly", schedule="@weekly", dry_run=False).params["dry_run"] is False
    retirement = retire_versions_dag("retire", bucket="models")
    assert (retirement.params["dry_run"], retirement.timetable.can_be_scheduled) == (True, False)
