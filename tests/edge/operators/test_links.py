"""Links of the tasks of a release, also of a refused one."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_onnx.dag import release_dag
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.provider import get_provider_info
from tests.edge.releasing import Release
from tests.edge.test_airflow_urls import rerun_conf
from tests.refusals import failed

EVERYWHERE = {"Training run", "Report", "Release again"}


def links_of(task: Any) -> dict[str, str]:
    """Return the links as Airflow stores them after the task has ended."""
    return {link.name: link.get_link(task, ti_key=None) for link in task.operator_extra_links}


def test_each_task_has_the_links_and_airflow_may_show_them() -> None:
    allowed = set(get_provider_info()["extra-links"])
    for task in release_dag("release_onnx").tasks:
        links = list(task.operator_extra_links)
        assert {link.name for link in links} >= EVERYWHERE, task.task_id
        assert {f"{type(link).__module__}.{type(link).__name__}" for link in links} <= allowed


def test_a_refused_task_has_them_and_its_report_is_the_one_of_the_refusal(
    hook: MlflowHook, release: Release, judged: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://airflow.test")
    release.conf = {"training_run_id": release.training_run_id, "mae_max": 1e-4}
    release.after(judged, "parity_latency").run("upload", "register", "promote")
    for name in ("prepare", "upload", "promote"):
        found = links_of(release.tasks[name])
        assert all(url.startswith("http://") for url in found.values()), name
        assert rerun_conf(found["Release again"]) == release.conf
        assert found["Report"].endswith(f"/artifacts/onnx_release/{release.model_name}/report.html")
    again = Release(
        release.training_run_id, release.model_name, dag_run_id="again", params={"parity": {"max_abs": 1e-30}}
    )
    again.after(judged, "check")
    with failed("benchmark_failed"):
        again.run("parity_latency")
    assert "/history/" in links_of(again.tasks["parity_latency"])["Report"]
