"""``python -m bench.parsing_steps airflow.sdk|DAG_FILE``: import Airflow's SDK, and load a DAG file if one is named."""

from __future__ import annotations

import importlib
import runpy
import sys

from bench.marking import Marked

HEAVY = ("torch", "onnx", "onnxruntime", "mlflow", "boto3")

if __name__ == "__main__":
    marked = Marked()
    with marked.work():
        importlib.import_module("airflow.sdk")
        if sys.argv[1].endswith(".py"):
            runpy.run_path(sys.argv[1])
    marked.report(heavy=[name for name in HEAVY if name in sys.modules])
