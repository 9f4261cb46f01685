"""Figures of the bench, their results, and the parts that measure them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from onnx_release.latency.host import describe_host
from stack.errors import StackError

if TYPE_CHECKING:
    from bench.models import Models

ROUNDS = 5

Spread = tuple[float, float]
T = TypeVar("T")


class NotMeasured(StackError):
    """Missing requirement of a figure; the message names it and its source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Measured value of a figure.

    `spread` is an interval or a range over `n` repetitions. `met` is None for a figure without a goal.
    """

    name: str
    value: float
    unit: str
    goal: str
    met: bool | None
    n: int
    spread: Spread
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figure:
    """Name, unit and goal of a figure; `condition` is a further requirement in words."""

    name: str
    unit: str = "x"
    at_most: float | None = None
    at_least: float | None = None
    condition: str | None = None

    @property
    def goal(self) -> str:
        """The goal as text, empty without one."""
        limits = ((f"{sign} {limit:g}") for sign, limit in (("<=", self.at_most), (">=", self.at_least)) if limit)
        return ", ".join([*limits, *([self.condition] if self.condition else [])])

    def result(
        self, value: float, detail: dict[str, Any], spread: Spread | None = None, *, n: int = 1, condition: bool = True
    ) -> Result:
        """Compare a value with the goal.

        Args:
            value: The measured value in the figure's unit.
            detail: Further findings; the description of this machine is added.
            spread: Interval or range of the value; the value alone if it was measured once.
            n: Number of repetitions.
            condition: Result of the further requirement of the goal.
        """
        within = (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)
        return Result(
            name=self.name,
            value=value,
            unit=self.unit,
            goal=self.goal,
            met=within and condition if self.goal else None,
            n=n,
            spread=spread or (value, value),
            detail=detail | {"host": describe_host().to_dict()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Amount of measuring, the reference models, and a scratch folder that is removed after the part."""

    models: Models
    folder: Path
    rounds: int = ROUNDS
    full: bool = False

    def choose(self, usual: T, full: T, rehearsal: T) -> T:
        """Return the amount for this call of the bench."""
        return rehearsal if self.models.rehearsal else full if self.full else usual


@dataclass(frozen=True, slots=True)
class Part:
    """Figures that are measured by the same runs; `minutes` is the usual duration on two CPUs."""

    name: str
    minutes: int
    figures: tuple[Figure, ...]
    measure: Callable[[Setting], Iterator[Result]]


def part(name: str, minutes: int, *figures: Figure) -> Callable[[Callable[[Setting], Iterator[Result]]], Part]:
    """Decorate a function that measures these figures."""
    return lambda measure: Part(name, minutes, figures, measure)


def progress(text: str) -> None:
    """Print a line about the progress of a measurement."""
    print(f"  {text}", file=sys.stderr, flush=True)
