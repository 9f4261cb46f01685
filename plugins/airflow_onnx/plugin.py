"""Airflow plugin with the extra links of tasks, the pages of the web server and the creation of the measuring pool."""

from __future__ import annotations

from pathlib import Path

from airflow_onnx import installation

installation.check(Path(__file__).parent)

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_onnx import run_notes
from airflow_onnx.deployment import pool, preload, settings
from airflow_onnx.links import ModelVersionLink, ObjectLink, release_links
from airflow_onnx.ui.app import URL_PREFIX, Pages


def _apps() -> list[dict[str, Any]]:
    return [{"app": Pages(), "url_prefix": URL_PREFIX, "name": "ONNX release"}]


def _views() -> list[dict[str, Any]]:
    """Return the entry of the navigation and the tab on each DAG run.

    The addresses are relative to the one that Airflow is served at.
    """
    if not settings.pages():
        return []
    prefix = URL_PREFIX.removeprefix("/")
    icons = {"icon": f"{prefix}/icon.svg", "icon_dark_mode": f"{prefix}/icon-dark.svg"}
    tab = f"{prefix}/run?dag_id={{DAG_ID}}&run_id={{RUN_ID}}"
    return [
        {"name": "Releases", "href": f"{prefix}/releases", "url_route": "onnx-releases", "nav_top_level": True}
        | {"destination": "nav", **icons},
        {"name": "Release", "href": tab, "url_route": "onnx-release", "destination": "dag_run", **icons},
    ]


class AirflowOnnxPlugin(AirflowPlugin):
    """Registration of links, pages and listener, which Airflow loads in every process."""

    name = "airflow_onnx"
    operator_extra_links: list[Any] = [*release_links(), ModelVersionLink(), ObjectLink()]  # noqa: RUF012 - as in Airflow
    fastapi_apps: list[Any] = _apps()
    external_views: list[Any] = _views()
    listeners: list[Any] = [pool, preload, run_notes]  # noqa: RUF012
