"""Airflow side of the release: operators, sensors, triggers, hooks and pages around the core `onnx_release`."""

from pathlib import Path

from airflow_onnx import installation

installation.check(Path(__file__).parent)
