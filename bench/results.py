"""Results on a terminal and in ``results.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.figure import Result

RESULTS = Path(__file__).parent / "results.json"


def table(results: Sequence[Result]) -> str:
    """Return the results as text, one per line."""
    lines = [f"{'name':<28} {'value':>9}  {'spread':<17} {'goal':<28} {'met':<4} n"]
    for r in results:
        met = {None: "-", True: "yes", False: "no"}[r.met]
        spread = f"[{r.spread[0]:.3g}, {r.spread[1]:.3g}]"
        lines.append(f"{r.name:<28} {r.value:>8.3g}{r.unit:<2} {spread:<17} {r.goal or '-':<28} {met:<4} {r.n}")
    return "\n".join(lines)


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the entries of earlier runs, empty without any."""
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return entries


def write(results: Sequence[Result], path: Path = RESULTS) -> None:
    """Write the results with the time; entries of other figures are kept."""
    measured_at = datetime.now(UTC).isoformat(timespec="seconds")
    new = {r.name: asdict(r) | {"detail": {**r.detail, "measured_at": measured_at}} for r in results}
    entries = {entry["name"]: entry for entry in read(path)} | new
    part = path.with_suffix(".part")
    part.write_text(json.dumps(list(entries.values()), indent=2) + "\n", encoding="utf-8")
    part.replace(path)
