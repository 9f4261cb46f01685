"""A plan, or what became of it, as a person and a program read it: a table, totals, JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_onnx.watch.decide import Planned

COLUMNS = ("training_run_id", "run_name", "experiment", "ended_at", "action", "reason")
# A summary travels through XCom, a row of Airflow's database; beyond this many runs it says how many it leaves out.
ROWS_MAX = 1000
CELL_MAX_CHARACTERS = 120
WORDS = {"release": "to release", "wait": "under way", "skip": "to skip", "refuse": "to refuse"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How long the releases of a plan take: `release_wall_s` for one, `at_once` of them side by side."""

    release_wall_s: float
    at_once: int
    basis: str

    def to_dict(self, releases: int) -> dict[str, Any]:
        """Return the estimate for so many releases."""
        return {
            "releases": releases,
            "at_once": self.at_once,
            "release_wall_s": round(self.release_wall_s, 1),
            "total_wall_s": round(releases * self.release_wall_s / self.at_once, 1),
            "basis": self.basis,
        }


def as_dict(
    planned: Sequence[Planned], estimate: Callable[[], Estimate] | None, rows_max: int | None = ROWS_MAX
) -> dict[str, Any]:
    """Return the plan as JSON has it: totals by action, the estimate, and the runs, at most `rows_max` of them.

    :param estimate: asked only when there is something to release, as it costs a search; None for no estimate.
    """
    shown = planned[:rows_max]
    totals = Counter(plan.action for plan in planned)
    return {
        "totals": {"runs": len(planned), **{action: totals[action] for action in sorted(totals)}},
        "estimate": estimate().to_dict(totals["release"]) if estimate and totals["release"] else None,
        "runs": [plan.to_dict() for plan in shown],
        "runs_left_out": len(planned) - len(shown),
    }


def lines(planned: Sequence[Planned]) -> list[str]:
    """Return the runs as the lines of a table with a heading."""
    rows = [COLUMNS, *(tuple(_cell(getattr(plan, column)) for column in COLUMNS) for plan in planned)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def total_line(plan: dict[str, Any]) -> str:
    """Return the totals and the estimate of `as_dict` in a sentence."""
    totals, estimate = plan["totals"], plan["estimate"]
    counted = ", ".join(f"{totals[action]} {words}" for action, words in WORDS.items() if action in totals)
    if estimate is None:
        return f"{totals['runs']} runs: {counted or 'nothing to do'}."
    return (
        f"{totals['runs']} runs: {counted}. About {_duration(estimate['total_wall_s'])}, "
        f"{estimate['at_once']} at once, {estimate['release_wall_s']:.0f} s each ({estimate['basis']})."
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _cell(text: str) -> str:
    # Run names are free text: a line break or an escape sequence in one must not forge a line of the log.
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable if len(printable) <= CELL_MAX_CHARACTERS else f"{printable[: CELL_MAX_CHARACTERS - 1]}…"
