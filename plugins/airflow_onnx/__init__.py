"""Airflow side of the release: operators, sensors, triggers, hooks and pages around the core `onnx_release`."""
