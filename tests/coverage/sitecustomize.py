"""Start of the coverage measurement in child processes that get a clean environment.

`make coverage` has this folder on PYTHONPATH. The code of the core passes its import path on to its child processes,
and none of the variables that coverage.py uses.
"""

from __future__ import annotations

import os
from pathlib import Path

import coverage

_ROOT = Path(__file__).parents[2]

if "COVERAGE_PROCESS_CONFIG" not in os.environ:
    os.environ["COVERAGE_FILE"] = str(_ROOT / ".coverage" / "data")
    os.environ["COVERAGE_PROCESS_START"] = str(_ROOT / "pyproject.toml")
    coverage.process_startup()
