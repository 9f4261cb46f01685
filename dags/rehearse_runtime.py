"""Airflow DAG `rehearse_runtime`: an upgrade of ONNX Runtime, tried with the released models."""

from __future__ import annotations

from airflow_onnx.rehearsal_dag import rehearse_runtime_dag

dag = rehearse_runtime_dag("rehearse_runtime", dag_display_name="Rehearse an upgrade of ONNX Runtime")
