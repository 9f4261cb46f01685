"""Datasets of a step for OpenLineage, with and without the provider."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_onnx.events.lineage import DatasetName, datasets
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.operators.upload import OnnxUploadToS3Operator
from onnx_release.records import ModelVersion, S3Object, TrainedModel
from onnx_release.records.base import Record

TRAINED = TrainedModel(training_run_id="r" * 32, model_uri="models:/m-1")
UPLOADED = S3Object(
    uri="s3://models/net/r/ab/", bucket="models", prefix="net/r/ab/", sha256="ab" * 32, size_bytes=1, files=()
)
VERSION = ModelVersion(name="net", version=5, sha256="ab" * 32, source="s3://models/net/r/ab", training_run_id="r")
MODEL = DatasetName("mlflow://mlflow.test:5000", "models/m-1")
FOLDER = DatasetName("s3://models", "net/r/ab")


@pytest.fixture(autouse=True)
def mlflow_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", "mlflow://user:secret@https%3A%2F%2Fmlflow.test:5000")


@pytest.mark.parametrize(
    ("result", "inputs", "outputs"),
    [
        (None, [MODEL], []),
        (UPLOADED, [MODEL], [FOLDER]),
        (VERSION, [MODEL, FOLDER], [DatasetName("mlflow://mlflow.test:5000", "models/net", "5")]),
    ],
)
def test_a_step_has_the_trained_model_as_input(
    result: Record | None, inputs: list[DatasetName], outputs: list[DatasetName]
) -> None:
    assert datasets(MlflowHook().server, TRAINED, result) == (inputs, outputs)


def test_the_provider_gets_the_datasets_of_an_upload() -> None:
    pytest.importorskip("airflow.providers.openlineage")
    from airflow.providers.openlineage.extractors.manager import ExtractorManager
    from airflow.utils.state import TaskInstanceState

    task: Any = OnnxUploadToS3Operator(
        task_id="upload", bucket="models", artifact="", check="", benchmark="", trained_model=TRAINED.to_dict()
    )
    task.result = UPLOADED
    run, ti = SimpleNamespace(run_id="manual__1"), SimpleNamespace()
    found = ExtractorManager().extract_metadata(run, task, TaskInstanceState.SUCCESS, ti)
    named = [[(one.namespace, one.name) for one in side] for side in (found.inputs, found.outputs)]
    assert named == [[(MODEL.namespace, MODEL.name)], [(FOLDER.namespace, FOLDER.name)]]
    task.result = VERSION
    [registered] = ExtractorManager().extract_metadata(run, task, TaskInstanceState.SUCCESS, ti).outputs
    assert registered.facets["version"].datasetVersion == "5"
