"""Airflow DAG `release_onnx`: the release of one finished training run as an ONNX model."""

from __future__ import annotations

from airflow_onnx.dag import release_dag

dag = release_dag("release_onnx", dag_display_name="Release a training run as ONNX")
