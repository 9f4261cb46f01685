"""Set-up of Airflow: database migration, connections and the pool of the DAGs.

Runs at each start. The connections always come from connections.json and the environment. An existing pool keeps its
slots, which a person may have changed.
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
# The name in `airflow_onnx.defaults`. A task without its pool waits for ever, without an error.
MEASURE_POOL = "onnx_measure"


def filled(value: Any) -> Any:
    """Return the JSON value with each ``${NAME}`` replaced from the environment. A missing name raises KeyError."""
    if isinstance(value, dict):
        return {key: filled(item) for key, item in value.items()}
    return Template(value).substitute(os.environ) if isinstance(value, str) else value


def airflow(*arguments: str) -> int:
    """Run Airflow's command line with visible output and return its status."""
    return subprocess.run([sys.executable, "-m", "airflow", *arguments], check=False).returncode


def main() -> int:
    """Run all steps. Return the status of the first failed command, or 0."""
    if status := airflow("db", "migrate"):
        return status
    # Airflow reads connections only from a file with a known suffix.
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
