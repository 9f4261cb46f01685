"""Metrics of releases for Airflow's own backends: StatsD, Datadog or OpenTelemetry.

Each metric has tags. A StatsD server without tags gets the most important one in the name too, like Airflow's own
metrics, while `[metrics] legacy_names_on` is true.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import conf
from airflow.sdk.exceptions import AirflowRuntimeError
from airflow.sdk.observability import stats

from airflow_onnx.compat import metrics
from airflow_onnx.events.release_end import ReleaseEnd
from airflow_onnx.step_times import WAITING_OPERATORS

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

ROOT = "onnx_release"


def send(context: Context, end: ReleaseEnd) -> None:
    """Send the counter, the durations and the figures of a release that has ended."""
    tags = {"model_name": end.model_name or "unknown"}
    if end.status == "released":
        _send(metrics().incr, "released", end.model_name, tags=tags)
        _send_figures(end, tags)
    elif end.status == "refused":
        _send(metrics().incr, "refused", end.code, tags=tags | {"code": end.code})
    else:
        _send(metrics().incr, "failed", end.task, tags=tags | {"task_id": end.task, "code": end.code})
    durations = _durations(context)
    for task_id, seconds in durations.items():
        _send(metrics().timing, "step", task_id, timedelta(seconds=seconds), tags=tags | {"task_id": task_id})
    if durations:
        wall = timedelta(seconds=sum(durations.values()))
        _send(metrics().timing, "wall", end.status, wall, tags=tags | {"status": end.status})


def _send_figures(end: ReleaseEnd, tags: dict[str, str]) -> None:
    figures = end.figures
    tags = tags | {"precision": figures.precision or "", "batch_size": str(figures.batch_size or "")}
    for name in ("speedup", "speedup_low", "p95_ms", "size_bytes"):
        if (value := getattr(figures, name)) is not None:
            _send(metrics().gauge, name, end.model_name, value, tags=tags)


def _durations(context: Context) -> dict[str, float]:
    """Return the seconds of each ended task but the waiting ones; nothing if Airflow does not return them."""
    ti: Any = context["ti"]
    run = context["dag_run"]
    try:
        rows = list(ti.get_task_breadcrumbs(run.dag_id, run.run_id))
    except (AirflowRuntimeError, ValueError, AttributeError) as error:
        # Airflow runs the callback of a killed task in its DAG processor, which cannot read durations.
        log.info("The durations of the tasks are not sent: %s", error)
        return {}
    return {
        str(row["task_id"]): float(row["duration"])
        for row in rows
        if row["duration"] is not None and row["operator"] not in WAITING_OPERATORS
    }


def _send(call: Callable[..., None], name: str, first_tag: str, *value: Any, tags: dict[str, str]) -> None:
    try:
        call(f"{ROOT}.{name}", *value, tags={key: text for key, text in tags.items() if text})
        if first_tag and conf.getboolean("metrics", "legacy_names_on", fallback=True):
            # A dot would begin another level of the name.
            part = stats.normalize_name_for_stats(first_tag.replace(".", "__"), log_warning=False)
            call(f"{ROOT}.{name}.{part}", *value)
    except Exception:  # A backend of the deployment can raise anything, and the release has ended.
        log.warning("The metric %s.%s is not sent.", ROOT, name, exc_info=True)
