"""A part of the soak on the stack of the system tests: releases with faults at the same time, and the statements."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from soak.rig import Rig, led_through_proxies
from soak.scenario import Outcome
from soak.scenarios import SCENARIOS

from .embedded import RunningStack

pytestmark = pytest.mark.system

# Of each kind that a release meets, one. The scenarios that stop a service or fill a disk need a stack of their own.
NAMES = (
    "two tasks killed",
    "MinIO: upload cut, download slow",
    "MLflow: answer lost after the version was created",
    "hostile training run",
    "hostile requests",
)


@pytest.fixture(scope="module")
def rig(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The stack behind fault proxies, with a training run for each release."""
    made = Rig(context=stack.context, disk=tmp_path_factory.mktemp("soak"))
    made.spare.extend(made.train(3))
    with led_through_proxies(made):
        yield made


@pytest.fixture(scope="module")
def outcomes(rig: Rig) -> dict[str, Outcome]:
    """The outcome of each scenario. They run at the same time, as in a soak."""
    chosen = [scenario for scenario in SCENARIOS if scenario.name in NAMES]
    with ThreadPoolExecutor(len(chosen)) as pool:
        found = pool.map(lambda one: one.run(rig, random.Random(one.name)), chosen)
        return dict(zip([one.name for one in chosen], found, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_scenario_is_survived_or_refused_and_every_statement_is_true(name: str, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[name]
    assert (outcome.problem, outcome.violations) == ("", [])
    assert sum(outcome.injected.values()) > 0
