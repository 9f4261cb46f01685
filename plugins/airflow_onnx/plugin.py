"""Airflow plugin with the extra links of tasks, the pages of the web server and the creation of the measuring pool."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_onnx.deployment import pool
from airflow_onnx.links import ModelVersionLink, ObjectLink, TrainingRunLink
from airflow_onnx.ui.app import URL_PREFIX, Pages


class AirflowOnnxPlugin(AirflowPlugin):
    """Registration of links, pages and listener, which Airflow loads in every process."""

    name = "airflow_onnx"
    operator_extra_links: list[Any] = [TrainingRunLink(), ModelVersionLink(), ObjectLink()]  # noqa: RUF012 - as in Airflow
    fastapi_apps: list[Any] = [{"app": Pages(), "url_prefix": URL_PREFIX, "name": "ONNX release"}]  # noqa: RUF012
    listeners: list[Any] = [pool]  # noqa: RUF012
