"""The one file of this folder that Airflow's plugin loader executes; `.airflowignore` keeps it out of the package."""

from airflow_onnx.plugin import AirflowOnnxPlugin

__all__ = ["AirflowOnnxPlugin"]
