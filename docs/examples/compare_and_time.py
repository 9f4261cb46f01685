"""DAG `compare_and_time`: the export of a trained model, its comparison with PyTorch and its speed, without a store."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_onnx.operators.check import OnnxCheckOperator
from airflow_onnx.operators.export import OnnxExportOperator
from airflow_onnx.operators.parity_latency import OnnxParityLatencyOperator
from airflow_onnx.sensors.mlflow_run import MlflowTrainingRunSensor

with DAG("compare_and_time", schedule=None, params={"training_run_id": ""}) as dag:
    trained = MlflowTrainingRunSensor(task_id="wait", training_run_id="{{ params.training_run_id }}").output
    artifact = OnnxExportOperator(task_id="export", trained_model=trained, opset=20).output
    check = OnnxCheckOperator(task_id="check", trained_model=trained, artifact=artifact).output
    OnnxParityLatencyOperator(
        task_id="compare",
        trained_model=trained,
        artifact=artifact,
        check=check,
        batch_sizes=[1],
        parity={"mae_max": 1e-4, "cosine_min": 0.9999},
        budget={"speedup_min": 1.1, "on_miss": "warn"},
        plan={"measure_max_s": 5},
        pool="onnx_measure",
    )
