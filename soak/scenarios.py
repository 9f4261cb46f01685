"""All scenarios of a soak. A room with more of them adds its list here."""

from __future__ import annotations

from soak import faults, kills, machine
from soak.scenario import Scenario

SCENARIOS: list[Scenario] = [*faults.SCENARIOS, *kills.SCENARIOS, *machine.SCENARIOS]
