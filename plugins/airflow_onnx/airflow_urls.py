"""Addresses of pages in Airflow: a DAG run, and the trigger page for another release."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from airflow_onnx.deployment import settings

# Served by ui/app.py.
TRIGGER_PAGE = "/onnx-release/trigger"


def dag_run_url(dag_id: str, run_id: str) -> str:
    """Return the address of a DAG run's page, without a host if Airflow's own address is not configured."""
    return f"{settings.airflow_url()}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"


def rerun_url(training_run_id: str, conf: dict[str, Any], max_characters: int) -> str:
    """Return the address of the trigger page, filled in with the parameters of a release.

    The longest parameters are omitted if the address would be too long. A release that was started with a model URI
    is repeated with it.

    :param conf: the parameters of the earlier release.
    """
    kept: dict[str, Any] = {"model_uri": conf["model_uri"]} if conf.get("model_uri") else {}
    if not kept or len(_trigger_page(kept)) > max_characters:
        kept = {"training_run_id": training_run_id}
    others = {name: value for name, value in conf.items() if name not in ("model_uri", "training_run_id")}
    # The model name first: the repeated release must not become a version of another model.
    for name in sorted(others, key=lambda one: (one != "model_name", len(json.dumps(others[one])), one)):
        more = {**kept, name: others[name]}
        if len(_trigger_page(more)) <= max_characters:
            kept = more
    return _trigger_page(kept)


def _trigger_page(conf: dict[str, Any]) -> str:
    return f"{settings.airflow_url()}{TRIGGER_PAGE}?conf={quote(json.dumps(conf, sort_keys=True), safe='')}"
