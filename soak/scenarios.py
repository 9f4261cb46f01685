"""All scenarios of a soak. A room with more of them adds its list here."""

from __future__ import annotations

from soak import burst, canary_search, faults, hostile_use, kills, machine
from soak.scenario import Scenario

SCENARIOS: list[Scenario] = [
    *faults.SCENARIOS,
    *hostile_use.SCENARIOS,
    *burst.SCENARIOS,
    *kills.SCENARIOS,
    *machine.SCENARIOS,
    *canary_search.SCENARIOS,
]
