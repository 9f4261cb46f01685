"""Buckets that a form may name: those of the deployment and of the DAG file, in every DAG that writes or deletes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from airflow_onnx.dag import release_dag
from airflow_onnx.deployment import settings
from airflow_onnx.leftovers_dag import collect_leftovers_dag
from airflow_onnx.operators.collect_leftovers import CollectLeftoversOperator
from airflow_onnx.operators.retire_versions import RetireVersionsOperator
from airflow_onnx.retirement_dag import retire_versions_dag
from airflow_onnx.storage import s3
from tests.edge.releasing import BUCKET, Release
from tests.refusals import failed

REFUSAL = ("bucket_not_allowed", "'mlflow'", f"({BUCKET})", "[onnx_release] release_buckets")


@pytest.mark.parametrize("step", ["prepare", "upload"])
def test_a_release_to_another_bucket_is_refused_and_writes_nothing(
    release: Release, judged: Release, administrator: None, step: str
) -> None:
    release.after(judged, "parity_latency")
    release.running = step
    task = getattr(release, f"_{step}")()
    # As Airflow does with the value of the form.
    task.bucket = "mlflow"
    with failed(*REFUSAL):
        task.execute(release.context)
    folder = s3.folder_at("minio_default", f"s3://mlflow/{release.model_name}", rerun=None)
    assert s3.sizes(folder) == {}


@pytest.mark.parametrize("operator", [CollectLeftoversOperator, RetireVersionsOperator])
def test_nothing_is_looked_for_in_another_bucket(hook: Any, administrator: None, operator: Any) -> None:
    task = operator(task_id="t", bucket=BUCKET)
    task.bucket = "mlflow"
    with failed(*REFUSAL):
        task.execute({})


def test_the_options_and_the_dag_file_allow_a_bucket(
    release: Release, judged: Release, administrator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    release.after(judged, "parity_latency")
    release.running = "prepare"
    task = release._prepare()
    task.bucket = "mlflow"
    for name in ("BUCKET", "RELEASE_BUCKETS"):
        with monkeypatch.context() as patch:
            patch.setenv(f"AIRFLOW__ONNX_RELEASE__{name}", "mlflow")
            assert "mlflow" in settings.release_buckets()
            copy.copy(task).execute(release.context)
    task.dag_bucket = "mlflow"
    task.execute(release.context)


def test_the_bucket_of_a_dag_file_is_that_of_its_argument_and_never_of_its_form() -> None:
    for factory, tasks in (
        (release_dag, ("prepare_work", "parity_latency", "upload")),
        (collect_leftovers_dag, ("collect",)),
        (retire_versions_dag, ("retire",)),
    ):
        for bucket in ("of-file", None):
            dag = factory(f"dag_{bucket}", bucket=bucket)
            assert {dag.get_task(name).dag_bucket for name in tasks} == {bucket or ""}, factory
