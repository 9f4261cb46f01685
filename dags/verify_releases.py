"""Airflow DAG `verify_releases`: another verification of released versions."""

from __future__ import annotations

from airflow_onnx.verification_dag import verify_releases_dag

dag = verify_releases_dag("verify_releases", dag_display_name="Verify released models again")
