"""One embedded stack for all system tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stack.layout import REPO
from stack.ports import free_ports
from stack.release import Release
from tests.guard import guarded

from .embedded import PROTECTED, WATCHED, RunningStack, describe, run_stack, stack_environment

# The runs of `small_runs`. Each belongs to one test.
SMALL_RUNS = (f"{WATCHED}/71", "events/81", "promotion/1", "promotion/2", "refused/1")


@pytest.fixture(scope="package")
def running_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The stack, up and healthy; stopped after the last test, and its logs shown when it does not start."""
    home = tmp_path_factory.mktemp("stack") / "state"
    dags = tmp_path_factory.mktemp("dags")
    for folder in (REPO / "dags", REPO / "docs" / "examples", Path(__file__).parent / "dags"):
        shutil.copytree(folder, dags, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**stack_environment(home, free_ports(3)), "STACK_DAGS": str(dags)}
    environment["AIRFLOW__ONNX_RELEASE__PROTECTED_ALIASES"] = PROTECTED
    # Tests that kill a task wait for its next try.
    environment["AIRFLOW__ONNX_RELEASE__RETRY_DELAY_S"] = "2"
    with guarded(home):
        started = run_stack("up", environment)
        assert started.returncode == 0, f"the stack did not start:\n{started.stdout}\n{started.stderr}"
        context = describe(home, environment)
        yield RunningStack(context, environment)


@pytest.fixture(scope="package")
def stack(running_stack: RunningStack) -> RunningStack:
    """The same, its DAGs parsed and unpaused."""
    Release(running_stack.api, "none").await_dags()
    return running_stack


@pytest.fixture(scope="package")
def small_runs(stack: RunningStack) -> dict[str, str]:
    """Training runs that are still running, by `experiment/seed`. One process trains them, as imports take the time."""
    return dict(zip(SMALL_RUNS, stack.small_runs(*SMALL_RUNS), strict=True))


@pytest.fixture(scope="package")
def client(stack: RunningStack) -> Any:
    """A client of its MLflow."""
    import mlflow

    return mlflow.MlflowClient(stack.context.mlflow_url, stack.context.mlflow_url)
