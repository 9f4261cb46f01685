"""DAG `release_first`: the whole file of a deployment's first model."""

from __future__ import annotations

from airflow_onnx.dag import release_dag

dag = release_dag("release_first", model_name="first-onnx", bucket="models")
