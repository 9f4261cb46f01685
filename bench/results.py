"""A measurement's result: as a row of the table, and as an entry of ``results.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"


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
    lines = [f"{'name':<28} {'value':>9}  {'spread':<17} {'goal':<22} {'met':<4} n"]
    for r in results:
        met = {None: "-", True: "yes", False: "no"}[r.met]
        spread = f"[{r.spread[0]:.3g}, {r.spread[1]:.3g}]"
        lines.append(f"{r.name:<28} {r.value:>8.3g}{r.unit:<2} {spread:<17} {r.goal or '-':<22} {met:<4} {r.n}")
    return "\n".join(lines)


def write(results: Sequence[Result], path: Path = RESULTS) -> None:
    """Write the results; those of an earlier run whose names are not among them are kept."""
    former = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    entries = {entry["name"]: entry for entry in former} | {r.name: asdict(r) for r in results}
    path.write_text(json.dumps(list(entries.values()), indent=2) + "\n", encoding="utf-8")


def say(text: str) -> None:
    """Tell a person who waits how far a measurement is."""
    print(f"  {text}", file=sys.stderr, flush=True)
