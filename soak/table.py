"""Table of a soak: faults injected by kind, survived, and the statements that are not true."""

from __future__ import annotations

import os
import platform
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from soak.scenario import Outcome, Scenario
from soak.statements import KINDS, Violation

Ended = list[tuple[Scenario, Outcome]]
_TITLES = {
    "lost": "lost",
    "doubled": "doubled",
    "alias": "wrong alias",
    "orphan": "orphans",
    "untrue": "untrue answers",
}


def rows(ended: Ended) -> list[dict[str, Any]]:
    """Return one row for each kind of fault. By default a fault was survived if its scenario was."""
    found: dict[str, Counter[str]] = {}
    for scenario, outcome in ended:
        of_kind: dict[str, int] = outcome.injected or {scenario.kind: 0}
        for kind, count in of_kind.items():
            row = found.setdefault(kind, Counter())
            row["injected"] += count
            row["survived"] += _survived(outcome, count)
        # A scenario with faults of several kinds counts once in the sum.
        row = found[next(iter(of_kind))]
        row["skipped"] += int(bool(outcome.skipped))
        row["canaries"] += outcome.canaries
        row.update(violation.kind for violation in outcome.violations)
    names = ("injected", "survived", *KINDS, "canaries", "skipped")
    return [{"kind": kind} | {name: row[name] for name in names} for kind, row in sorted(found.items())]


def _survived(outcome: Outcome, count: int) -> int:
    if outcome.survived is not None:
        return outcome.survived
    return 0 if outcome.problem or outcome.violations else count


def table(ended: Ended, title: str) -> Table:
    """Return the rows with their sum."""
    made = Table("fault", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("injected or tried", "survived or refused", *_TITLES.values(), "canaries found"):
        made.add_column(name, justify="right")
    found = rows(ended)
    columns = ("injected", "survived", *_TITLES, "canaries")
    for row in found:
        texts = [str(row[name]) for name in columns]
        made.add_row(row["kind"], *(["skipped", *texts[1:]] if row["skipped"] and not row["injected"] else texts))
    made.add_section()
    made.add_row("all", *(str(sum(row[name] for row in found)) for name in columns))
    return made


def host() -> dict[str, Any]:
    """Return the kind of the host."""
    processor = next(iter(_lines(Path("/proc/cpuinfo"), "model name")), platform.processor())
    return {
        "processor": processor,
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _lines(path: Path, name: str) -> list[str]:
    if not path.exists():
        return []
    return [line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith(name)]


def document(ended: Ended, at_rest: list[Violation], seed: int, wall_s: float) -> dict[str, Any]:
    """Return the result for machines."""
    scenarios = [{"name": scenario.name, "kind": scenario.kind, **asdict(outcome)} for scenario, outcome in ended]
    return {
        "seed": seed,
        "wall_s": round(wall_s, 1),
        "host": host(),
        "rows": rows(ended),
        "at_rest": [violation._asdict() for violation in at_rest],
        "scenarios": scenarios,
    }
