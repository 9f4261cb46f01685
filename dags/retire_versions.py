"""Airflow DAG `retire_versions`: deletion of old versions that no alias has, together with their objects."""

from __future__ import annotations

from airflow_onnx.retirement_dag import retire_versions_dag

dag = retire_versions_dag("retire_versions", dag_display_name="Retire old versions")
