"""Datasets of a step for OpenLineage: the trained model, the folder in the store, and the registered model.

Airflow's OpenLineage provider asks each operator for them. It is optional: nothing here runs without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from airflow_onnx.hooks.mlflow_server import MlflowServer
from onnx_release.records import ModelVersion, S3Object, TrainedModel
from onnx_release.records.base import Record


@dataclass(frozen=True, slots=True)
class DatasetName:
    """Namespace and name of a dataset by OpenLineage's naming, with its version if it has one."""

    namespace: str
    name: str
    version: str = ""


def datasets(
    server: MlflowServer, trained_model: TrainedModel | None, result: Record | None
) -> tuple[list[DatasetName], list[DatasetName]]:
    """Return the inputs and the outputs of a step.

    :param result: the record that the step returned. Only an upload and a model version are outputs.
    """
    address = urlsplit(server.tracking_uri)
    mlflow = f"mlflow://{address.netloc}{address.path.rstrip('/')}"
    trained = [DatasetName(mlflow, trained_model.model_uri.replace(":/", "/", 1))] if trained_model else []
    if isinstance(result, S3Object):
        return trained, [_folder(result.uri)]
    if isinstance(result, ModelVersion):
        registered = DatasetName(mlflow, f"models/{result.name}", str(result.version))
        return [*trained, _folder(result.source)], [registered]
    return trained, []


def operator_lineage(server: MlflowServer, trained_model: TrainedModel | None, result: Record | None) -> Any:
    """Return the `OperatorLineage` of a step."""
    from airflow.providers.openlineage.extractors import OperatorLineage
    from openlineage.client.event_v2 import Dataset
    from openlineage.client.facet_v2 import dataset_version_dataset

    def dataset(found: DatasetName) -> Any:
        version = dataset_version_dataset.DatasetVersionDatasetFacet(found.version)
        return Dataset(found.namespace, found.name, facets={"version": version} if found.version else {})

    inputs, outputs = datasets(server, trained_model, result)
    return OperatorLineage(inputs=[dataset(one) for one in inputs], outputs=[dataset(one) for one in outputs])


def _folder(uri: str) -> DatasetName:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return DatasetName(f"s3://{bucket}", prefix.strip("/"))
