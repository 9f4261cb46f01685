"""Table of a soak: faults injected by kind, survived, and the statements that are not true."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
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
    """Return one row for each kind of fault. A fault has survived if its scenario has."""
    found: dict[str, Counter[str]] = {}
    for scenario, outcome in ended:
        of_kind: dict[str, int] = outcome.injected or {scenario.kind: 0}
        for kind, count in of_kind.items():
            row = found.setdefault(kind, Counter())
            row["injected"] += count
            row["survived"] += 0 if outcome.problem or outcome.violations else count
            row["skipped"] += int(bool(outcome.skipped))
            row["canaries"] += outcome.canaries
            row.update(violation.kind for violation in outcome.violations)
    names = ("injected", "survived", *KINDS, "canaries", "skipped")
    return [{"kind": kind} | {name: row[name] for name in names} for kind, row in sorted(found.items())]


def table(ended: Ended, title: str) -> Table:
    """Return the rows with their sum."""
    made = Table("fault", title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("injected", "survived", *_TITLES.values(), "canaries found"):
        made.add_column(name, justify="right")
    found = rows(ended)
    columns = ("injected", "survived", *_TITLES, "canaries")
    for row in found:
        texts = [str(row[name]) for name in columns]
        made.add_row(row["kind"], *(["skipped", *texts[1:]] if row["skipped"] and not row["injected"] else texts))
    made.add_section()
    made.add_row("all", *(str(sum(row[name] for row in found)) for name in columns))
    return made


def document(ended: Ended, at_rest: list[Violation], seed: int) -> dict[str, Any]:
    """Return the result for machines."""
    scenarios = [{"name": scenario.name, "kind": scenario.kind, **asdict(outcome)} for scenario, outcome in ended]
    return {
        "seed": seed,
        "rows": rows(ended),
        "at_rest": [violation._asdict() for violation in at_rest],
        "scenarios": scenarios,
    }
