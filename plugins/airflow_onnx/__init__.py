"""The edge: all that knows Airflow, MLflow or S3. The work itself is done by `onnx_release`."""
