"""Command `onnx-release`: the work of a release in a shell, without Airflow."""
