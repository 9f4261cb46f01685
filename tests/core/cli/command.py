"""The command in this process, and in one that can import nothing of Airflow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onnx_release.cli.main import main

ROOT = Path(__file__).parents[3]
# Finders come before the path: an import of any of Airflow's packages, or of the edge, fails.
WITHOUT_AIRFLOW = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("airflow"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Refuse())
from onnx_release.cli.main import main
raise SystemExit(main())
"""


def document(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, Any]:
    """Run the command with ``--json`` and return its document."""
    capsys.readouterr()
    found = main([str(argument) for argument in (*arguments, "--json")])
    printed = capsys.readouterr()
    assert found == code, printed
    result: dict[str, Any] = json.loads(printed.out)
    assert (result["command"], result["exit_code"]) == (arguments[0], code)
    return result


def run_without_airflow(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a child interpreter in which imports of Airflow fail."""
    import os

    return subprocess.run(
        [sys.executable, "-c", WITHOUT_AIRFLOW, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "include")} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
