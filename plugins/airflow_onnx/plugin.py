"""Registers the extra links, so that the API server knows them when it reads a serialised DAG."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_onnx.links import ModelVersionLink, ObjectLink, TrainingRunLink


class AirflowOnnxPlugin(AirflowPlugin):
    """Airflow's entry to this package."""

    name = "airflow_onnx"
    operator_extra_links: list[Any] = [TrainingRunLink(), ModelVersionLink(), ObjectLink()]  # noqa: RUF012 - as in Airflow
