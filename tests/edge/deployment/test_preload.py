"""Import of the tasks' libraries by the scheduler: only there, and only if the deployment asks for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from airflow_onnx.deployment import preload


class Job:
    """A component of Airflow with the database, which calls the listeners at its start."""


class TaskRunnerMarker:
    """A task's process at its start."""


@pytest.mark.parametrize(
    ("option", "command", "component", "imported"),
    [
        ("True", "scheduler", Job(), True),
        ("False", "scheduler", Job(), False),
        ("True", "triggerer", Job(), False),
        ("True", "scheduler", TaskRunnerMarker(), False),
    ],
)
def test_the_scheduler_imports_the_libraries_that_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, command: str, component: object, imported: bool
) -> None:
    (tmp_path / "heavy_library.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__PRELOAD", option)
    monkeypatch.setattr(sys, "argv", ["airflow", command, "--skip-serve-logs"])
    monkeypatch.setattr(preload, "MODULES", ("missing_library", "heavy_library"))
    preload.on_starting(component)
    assert (sys.modules.pop("heavy_library", None) is not None) == imported


def test_each_module_exists() -> None:
    for name in preload.MODULES:
        __import__(name)
