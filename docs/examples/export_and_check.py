"""DAG `export_and_check`: the export of a trained model and its static checks, without a release."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_onnx.operators.check import OnnxCheckOperator
from airflow_onnx.operators.export import OnnxExportOperator
from airflow_onnx.sensors.mlflow_run import MlflowTrainingRunSensor

with DAG("export_and_check", schedule=None, params={"training_run_id": ""}) as dag:
    trained = MlflowTrainingRunSensor(task_id="wait", training_run_id="{{ params.training_run_id }}").output
    artifact = OnnxExportOperator(task_id="export", trained_model=trained).output
    OnnxCheckOperator(task_id="check", trained_model=trained, artifact=artifact)
