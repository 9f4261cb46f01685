"""Scenarios of a soak and their outcomes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from soak.statements import Violation

if TYPE_CHECKING:
    from soak.rig import Rig


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The result of a scenario.

    :param injected: the faults by kind that really happened, or hostile inputs that were tried.
    :param survived: the number of them that were survived or refused. None: all, or none if the scenario has failed.
    :param problem: empty if the release survived them, or if every input was refused; else the reason.
    :param violations: the statements that are not true after the recovery.
    :param skipped: the reason why nothing was tried.
    :param canaries: secrets that were found where no secret may be.
    :param figures: measured values, for the reader.
    """

    injected: dict[str, int] = field(default_factory=dict)
    survived: int | None = None
    problem: str = ""
    violations: list[Violation] = field(default_factory=list)
    skipped: str = ""
    canaries: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One scenario.

    :param kind: the row of the table, such as ``task killed``, for an outcome that injects nothing.
    :param run: does the work. It gets the stack and a random generator with a seed of its own.
    :param alone: no other scenario runs meanwhile, because it stops a service or fills the disk.
    :param last: it runs after all others, because it reads everything that they left.
    """

    name: str
    kind: str
    run: Callable[[Rig, random.Random], Outcome]
    alone: bool = False
    last: bool = False
