"""The one file of this folder that Airflow's plugin loader executes; `.airflowignore` keeps it out of the package."""

from pathlib import Path

from airflow_onnx import installation

# Python may have imported the package of an installed wheel.
installation.check(Path(__file__).parent / "airflow_onnx")

from airflow_onnx.plugin import AirflowOnnxPlugin  # noqa: E402

__all__ = ["AirflowOnnxPlugin"]
