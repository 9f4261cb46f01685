"""Distribution of the tests over the workers: units that stay together, and tests that run alone.

With pytest-xdist (`make test`), workers take units of tests from one queue in the order below. Without it, the tests
run one after the other in the same order.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

# Before torch is loaded, here and in child processes. The workers share the processors, and OpenMP threads that spin
# for each other's results would use three times the time of one thread. A measurement sets its own number of threads.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Before Airflow and MLflow are loaded. Airflow's examples have a plugin that writes into the log of every task, and a
# process loads its plugins once. MLflow's telemetry waits for a network, and ONNX Runtime's writes to the home folder.
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

HERE = Path(__file__).parent
# The tests of each unit share services or fixtures. The longest units are first, and they are too short to end last.
# A test belongs to the first unit whose pattern its path begins with.
ONE_WORKER = (
    "tests/system/test_[a-r]",
    "tests/system",
    "tests/edge/operators/test_[p-z]",
    "tests/edge/operators",
    "tests/edge/[s-z]",
    "tests/edge",
    "tests/core/cli",
)
# Single models that share nothing. Workers take them one by one at the end, so that all end at about the same time.
ONE_BY_ONE = "tests/zoo"


def unit_of(nodeid: str) -> str:
    """Return the unit of a test: its folder, its file, or itself. A unit goes to one worker."""
    path = nodeid.partition("::")[0]
    for folder in ONE_WORKER:
        if fnmatch(path, f"{folder}*"):
            return folder
    return nodeid if str(Path(path).parent) == ONE_BY_ONE else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute the units in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    config.option.loadscopereorder = False
    return Units(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests that run alone, before any long test runs; then the longest units first."""
    alone = [item for item in items if is_alone(item)]
    units, files = {unit_of(item.nodeid) for item in alone}, {item.path for item in alone}

    def place(item: pytest.Item) -> tuple[bool, int, bool]:
        unit = unit_of(item.nodeid)
        size = ONE_WORKER.index(unit) if unit in ONE_WORKER else 98 if unit != item.nodeid else 99
        return unit not in units, size, item.path not in files

    items.sort(key=place)


def is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test that measures speed while no other worker runs a test."""
    with _turn(alone=is_alone(item)):
        return (yield)


@contextmanager
def _turn(*, alone: bool) -> Iterator[None]:
    """Hold the shared or the exclusive lock. Nobody gets the shared one while a test waits for the exclusive one."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    # The locks are on existing files: nothing remains, and a dead worker releases them.
    with (HERE / "__init__.py").open() as queue, (HERE / "conftest.py").open() as lock:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield
