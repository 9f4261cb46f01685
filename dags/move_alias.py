"""Airflow DAG `move_alias`: the move of an alias to another version, for example a roll back."""

from __future__ import annotations

from airflow_onnx.alias_dag import move_alias_dag

dag = move_alias_dag("move_alias", dag_display_name="Move an alias to another version")
