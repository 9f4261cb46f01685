"""Airflow with a database of its own in a process of its own, without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
SET_UP = """
import json, os
from airflow import settings
from airflow.models import import_all_models
from airflow.models.base import Base
from airflow.utils.db import synchronize_log_template

settings.initialize()
import_all_models()
Base.metadata.create_all(settings.engine)
synchronize_log_template()

from airflow.dag_processing.dagbag import DagBag

bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
assert not bag.import_errors, bag.import_errors
found = {}
"""


def run_in_airflow(home: Path, dags: Mapping[str, str], script: str, **variables: str) -> dict[str, Any]:
    """Run a script after `SET_UP` with the given DAG files, and return the dict `found` that it fills.

    :param variables: more environment variables.
    """
    folder = home / "dags"
    folder.mkdir()
    for name, text in dags.items():
        (folder / name).write_text(text)
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder),
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW_CONN_MLFLOW_DEFAULT": "mlflow://http%3A%2F%2F127.0.0.1:1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "include", ROOT / "plugins"))),
        **variables,
    }
    code = f'{SET_UP}\n{script}\nprint("FOUND " + json.dumps(found))'
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("FOUND ")) | {"log": done.stdout + done.stderr}
    return result
