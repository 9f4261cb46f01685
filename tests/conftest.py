"""How the tests share the processors: which go to one worker together, and which run alone.

With pytest-xdist (`make test`) several workers take units of tests from one queue, in the order below. Without it the
tests run one after the other, in the same order.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
# Each has services of its own, started once for all its tests.
ONE_WORKER = ("tests/edge", "tests/system")
# Many single models with nothing to share: the workers take them one by one in the end, and so end together.
ONE_BY_ONE = "tests/zoo"


def unit_of(nodeid: str) -> str:
    """Return the name of the tests that go to one worker with this one: its folder, its file, or itself."""
    path = nodeid.partition("::")[0]
    for folder in ONE_WORKER:
        if path.startswith(f"{folder}/"):
            return folder
    return nodeid if str(Path(path).parent) == ONE_BY_ONE else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand the units out in the order of the collection."""
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    config.option.loadscopereorder = False
    return Units(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what runs alone, while no worker is in the middle of a long test; then the longest units first."""
    alone = [item for item in items if is_alone(item)]
    units, files = {unit_of(item.nodeid) for item in alone}, {item.path for item in alone}

    def place(item: pytest.Item) -> tuple[bool, int, bool]:
        unit = unit_of(item.nodeid)
        size = 0 if unit in ONE_WORKER else 2 if unit == item.nodeid else 1
        return unit not in units, size, item.path not in files

    items.sort(key=place)


def is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test that measures while no other worker runs one: a rival for the processor is no part of its figures."""
    with _turn(alone=is_alone(item)):
        return (yield)


@contextmanager
def _turn(*, alone: bool) -> Iterator[None]:
    """Hold the room with the others, or alone; the door is shut while somebody waits for the room to be empty."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    # The locks are on files that are there anyway: nothing is left behind, and a worker that dies lets go of them.
    with (HERE / "__init__.py").open() as door, (HERE / "conftest.py").open() as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield
