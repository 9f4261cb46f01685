"""Addresses of pages in Airflow: a DAG run, and the trigger page for another release."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from airflow_onnx.deployment import settings

# Served by ui/app.py.
TRIGGER_PAGE = "/onnx-release/trigger"


def dag_run_url(dag_id: str, run_id: str) -> str:
    """Return the address of a DAG run's page, without a host if Airflow's own address is not configured."""
    return f"{settings.airflow_url()}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"


def dag_id_of(dag_run_url: str) -> str:
    """Return the DAG's id in the address of a DAG run, else an empty string. The address is not trusted."""
    try:
        parts = urlsplit(dag_run_url).path.split("/")
    except ValueError:
        return ""
    at = parts.index("dags") if "dags" in parts else -1
    return unquote(parts[at + 1]) if 0 <= at < len(parts) - 1 else ""


def dag_run_of(url: str) -> tuple[str, str]:
    """Return the ids of DAG and DAG run in the address of a DAG run in this Airflow, else two empty texts.

    :param url: an address, which is not trusted.
    """
    try:
        parts = [unquote(part) for part in urlsplit(url).path.split("/")]
    except ValueError:
        return "", ""
    dag_id, run_id = (parts[-3], parts[-1]) if len(parts) >= 4 else ("", "")
    return (dag_id, run_id) if dag_id and run_id and dag_run_url(dag_id, run_id) == url else ("", "")


def conf_of(rerun: str) -> dict[str, Any]:
    """Return the parameters in an address that `rerun_url` made. They are empty for any other text."""
    try:
        conf = json.loads(parse_qs(urlsplit(rerun).query)["conf"][0])
    except (ValueError, KeyError):
        return {}
    return conf if isinstance(conf, dict) else {}


def rerun_url(dag_id: str, training_run_id: str, conf: dict[str, Any], max_characters: int) -> str:
    """Return the address of the trigger page, filled in with the parameters of a release.

    The longest parameters are omitted if the address would be too long. A release that was started with a model URI
    is repeated with it.

    :param dag_id: the release DAG.
    :param conf: the parameters of the earlier release.
    """
    kept: dict[str, Any] = {"model_uri": conf["model_uri"]} if conf.get("model_uri") else {}
    if not kept or len(_trigger_page(dag_id, kept)) > max_characters:
        kept = {"training_run_id": training_run_id}
    others = {name: value for name, value in conf.items() if name not in ("model_uri", "training_run_id")}
    # The model name first: the repeated release must not become a version of another model.
    for name in sorted(others, key=lambda one: (one != "model_name", len(json.dumps(others[one])), one)):
        more = {**kept, name: others[name]}
        if len(_trigger_page(dag_id, more)) <= max_characters:
            kept = more
    return _trigger_page(dag_id, kept)


def _trigger_page(dag_id: str, conf: dict[str, Any]) -> str:
    query = urlencode({"dag": dag_id, "conf": json.dumps(conf, sort_keys=True)}, quote_via=quote, safe="")
    return f"{settings.airflow_url()}{TRIGGER_PAGE}?{query}"
