"""DAG `train_and_release`: a training, the release of its model as a task group, and a task after the release."""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_onnx.dag import release_task_group

with DAG("train_and_release", schedule=None) as dag:

    @task
    def train():
        """Train the model and return the id of the MLflow run."""
        return "0123456789abcdef0123456789abcdef"

    @task
    def deploy():
        """Use the released version."""

    run_id = train()
    run_id >> release_task_group(training_run_id=run_id, model_name="churn-onnx", bucket="acme-models") >> deploy()
