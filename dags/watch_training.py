"""Airflow DAG `watch_training`: the start of one release for each finished training run in MLflow."""

from __future__ import annotations

from airflow_onnx.dag import watch_dag

dag = watch_dag("watch_training", release_dag_id="release_onnx", dag_display_name="Watch for finished training runs")
