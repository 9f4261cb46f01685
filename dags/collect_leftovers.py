"""Airflow DAG `collect_leftovers`: removal of files and records that a crash left behind."""

from __future__ import annotations

from airflow_onnx.leftovers_dag import collect_leftovers_dag

dag = collect_leftovers_dag("collect_leftovers", dag_display_name="Collect leftovers of releases")
