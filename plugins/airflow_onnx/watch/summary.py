"""Summary of decisions for people and programs: a table, totals, JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from airflow_onnx.watch.decide import Decision
from airflow_onnx.watch.estimate import Estimate
from onnx_release.errors import shorten

COLUMNS = ("training_run_id", "run_name", "experiment", "ended_at", "model_name", "action", "reason")
# A summary travels through XCom, which is a row of Airflow's database.
ROWS_MAX = 1000
CELL_MAX_CHARACTERS = 120
_ACTION_TEXTS = {"release": "to release", "wait": "in progress", "skip": "to skip", "refuse": "to refuse"}


def to_dict(
    decisions: Sequence[Decision], estimate: Callable[[], Estimate] | None = None, rows_max: int | None = ROWS_MAX
) -> dict[str, Any]:
    """Return totals by action, the estimate, and the decisions, as JSON-safe values.

    :param estimate: called only if there is a run to release, because it costs a search. None for no estimate.
    :param rows_max: the largest number of decisions in the result, None for all.
    """
    shown = decisions[:rows_max]
    totals = Counter(decision.action for decision in decisions)
    return {
        "totals": {"runs": len(decisions), **{action: totals[action] for action in sorted(totals)}},
        "estimate": _estimate(estimate(), totals["release"]) if estimate and totals["release"] else None,
        "runs": [decision.to_dict() for decision in shown],
        "runs_omitted": len(decisions) - len(shown),
    }


def _estimate(estimate: Estimate, releases: int) -> dict[str, Any]:
    return {
        "releases": releases,
        "at_once": estimate.at_once,
        "release_wall_s": round(estimate.release_wall_s, 1),
        "total_wall_s": round(estimate.total_wall_s(releases), 1),
        "basis": estimate.basis,
    }


def lines(decisions: Sequence[Decision]) -> list[str]:
    """Return the decisions as the lines of a table with a heading."""
    rows = [COLUMNS, *(tuple(row(decision.to_dict()).values()) for decision in decisions)]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in rows]


def row(decision: dict[str, Any]) -> dict[str, str]:
    """Return the cells of one decision of `to_dict` by column, each of printable characters and limited length."""
    return {column: _cell(decision[column]) for column in COLUMNS}


def total_line(summary: dict[str, Any]) -> str:
    """Return the totals and the estimate of `to_dict` as a sentence."""
    totals, estimate = summary["totals"], summary["estimate"]
    counts = ", ".join(f"{totals[action]} {text}" for action, text in _ACTION_TEXTS.items() if action in totals)
    found = f"{totals['runs']} {'run' if totals['runs'] == 1 else 'runs'}: {counts or 'nothing to do'}."
    if estimate is None:
        return found
    each = f"{_duration(estimate['release_wall_s'])} each, {estimate['at_once']} at the same time; {estimate['basis']}"
    if estimate["releases"] == 1:
        each = estimate["basis"]
    return f"{found} About {_duration(estimate['total_wall_s'])} in total ({each})."


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _cell(text: str) -> str:
    # Run names are free text: a line break or an escape sequence in one must not forge a line of the log.
    printable = "".join(character if character.isprintable() else " " for character in text)
    return shorten(printable, CELL_MAX_CHARACTERS)
