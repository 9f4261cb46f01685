"""A part of the soak: releases that meet faults at the same time, and the statements about them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from soak.rig import Rig, led_through_proxies
from soak.scenario import Outcome
from soak.scenarios import SCENARIOS

from .embedded import RunningStack

pytestmark = pytest.mark.system
NAMES = ("MinIO: upload flipped, listing 503", "MLflow: answer lost after the version was created", "hostile requests")


@pytest.fixture
def rig(stack: RunningStack, tmp_path: Path) -> Iterator[Rig]:
    """The stack of the system tests behind fault proxies, with a training run for each scenario."""
    made = Rig(context=stack.context, disk=tmp_path)
    made.spare.extend(made.train(len(NAMES)))
    with led_through_proxies(made):
        yield made


def test_releases_with_faults_end_as_one_version_and_hostile_requests_are_refused(rig: Rig) -> None:
    chosen = [scenario for scenario in SCENARIOS if scenario.name in NAMES]
    assert len(chosen) == len(NAMES)

    def run(place: int) -> Outcome:
        return chosen[place].run(rig, random.Random(place))

    with ThreadPoolExecutor(len(chosen)) as pool:
        outcomes = list(pool.map(run, range(len(chosen))))
    for scenario, outcome in zip(chosen, outcomes, strict=True):
        assert (outcome.problem, outcome.violations) == ("", []), scenario.name
        assert outcome.injected, scenario.name
