"""Brings Airflow's database to this version, and makes the connections and the pool that the DAGs expect.

Runs at each start and changes nothing that is right. The connections are always those of connections.json and the
environment; a pool that is there keeps the slots that a person gave it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from string import Template
from typing import Any

CONNECTIONS = Path(__file__).with_name("connections.json")
# As `airflow_onnx.defaults` has it. A task whose pool is missing waits for ever, without an error.
MEASURE_POOL = "onnx_measure"


def filled(value: Any) -> Any:
    """Return the JSON value with each ``${NAME}`` of its strings from the environment; a missing one is a KeyError."""
    if isinstance(value, dict):
        return {key: filled(item) for key, item in value.items()}
    return Template(value).substitute(os.environ) if isinstance(value, str) else value


def airflow(*arguments: str) -> int:
    """Run Airflow's command line, its output shown, and return its status."""
    return subprocess.run([sys.executable, "-m", "airflow", *arguments], check=False).returncode


def main() -> int:
    """Do all of it; returns the status of the first command that fails."""
    if status := airflow("db", "migrate"):
        return status
    # Airflow reads a file only, by its suffix; this one is gone a moment later.
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(filled(json.loads(CONNECTIONS.read_text())), file)
        file.flush()
        if status := airflow("connections", "import", "--overwrite", file.name):
            return status
    if airflow("pools", "get", MEASURE_POOL) == 0:
        return 0
    return airflow("pools", "set", MEASURE_POOL, "1", "Latency is measured alone: one task at a time.")


if __name__ == "__main__":
    sys.exit(main())
