"""A measurement's result: as a row of the table, and as an entry of ``results.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stack.errors import StackError

RESULTS = Path(__file__).parent / "results.json"


class NotMeasured(StackError):
    """What a figure needs is not to be had on this machine; the message says what, and where to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One figure, in an interval or range `spread`, from `n` repetitions; `met` is None where there is no goal."""

    name: str
    value: float
    unit: str
    goal: str
    met: bool | None
    n: int
    spread: tuple[float, float]
    detail: dict[str, Any] = field(default_factory=dict)


def table(results: Sequence[Result]) -> str:
    """Return the results as text, one a line."""
    lines = [f"{'name':<28} {'value':>9}  {'spread':<17} {'goal':<28} {'met':<4} n"]
    for r in results:
        met = {None: "-", True: "yes", False: "no"}[r.met]
        spread = f"[{r.spread[0]:.3g}, {r.spread[1]:.3g}]"
        lines.append(f"{r.name:<28} {r.value:>8.3g}{r.unit:<2} {spread:<17} {r.goal or '-':<28} {met:<4} {r.n}")
    return "\n".join(lines)


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the entries of an earlier run, none where there was none."""
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return entries


def write(results: Sequence[Result], path: Path = RESULTS) -> None:
    """Write the results and the time; those of an earlier run whose names are not among them are kept."""
    measured_at = datetime.now(UTC).isoformat(timespec="seconds")
    new = {r.name: asdict(r) | {"detail": {**r.detail, "measured_at": measured_at}} for r in results}
    entries = {entry["name"]: entry for entry in read(path)} | new
    part = path.with_suffix(".part")
    part.write_text(json.dumps(list(entries.values()), indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def say(text: str) -> None:
    """Tell a person who waits how far a measurement is."""
    print(f"  {text}", file=sys.stderr, flush=True)
