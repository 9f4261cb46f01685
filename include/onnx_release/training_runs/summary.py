"""Summary of decisions for people and programs: groups by reason, a table, totals, JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any
from unicodedata import combining, east_asian_width

from onnx_release.text import printable, shorten
from onnx_release.training_runs import reasons
from onnx_release.training_runs.decide import Decision
from onnx_release.training_runs.estimate import Estimate

# The cells of a program's table.
COLUMNS = ("training_run_id", "run_name", "experiment", "ended_at", "model_name", "action", "reason_code", "reason")
# The table of a log or a terminal: heading, key of the decision, width. The reason is on the left, so that a narrow
# window shows it.
_TABLE = (
    ("action", "action", 7),
    ("reason", "reason_code", 30),
    ("run", "run_name", 32),
    ("ended (UTC)", "ended_at", 16),
    ("training run id", "training_run_id", 32),
    ("model", "model_name", 24),
)
# A summary travels through XCom, which is a row of Airflow's database.
ROWS_MAX = 1000
EXAMPLES_MAX = 3
NAME_MAX_CHARACTERS = 32
CELL_MAX_CHARACTERS = 120
_ACTION_TEXTS = {"release": "to release", "wait": "in progress", "refuse": "to refuse", "skip": "to skip"}


def to_dict(
    decisions: Sequence[Decision], estimate: Callable[[], Estimate] | None = None, rows_max: int | None = ROWS_MAX
) -> dict[str, Any]:
    """Return totals by action, groups by reason, the estimate, and the decisions, as JSON-safe values.

    :param estimate: called only if there is a run to release, because it costs a search. None for no estimate.
    :param rows_max: the largest number of decisions in the result, None for all.
    """
    groups = _groups(decisions)
    totals = {action: sum(group["runs"] for group in groups if group["action"] == action) for action in _ACTION_TEXTS}
    shown = decisions[:rows_max]
    return {
        "totals": {"runs": len(decisions), **{action: totals[action] for action in sorted(totals) if totals[action]}},
        "groups": groups,
        "estimate": _estimate(estimate(), totals["release"]) if estimate and totals["release"] else None,
        "runs": [decision.to_dict() for decision in shown],
        "runs_omitted": len(decisions) - len(shown),
    }


def _groups(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    """Return the runs by action and reason: runs to release first, runs to skip last, large groups first."""
    found: dict[tuple[str, str], list[Decision]] = {}
    for decision in decisions:
        found.setdefault((decision.action, decision.reason_code), []).append(decision)
    order = list(_ACTION_TEXTS)
    return [
        {
            "action": action,
            "reason_code": code,
            "runs": len(members),
            "meaning": reasons.meaning(code),
            "examples": [
                _printable(member.run_name, NAME_MAX_CHARACTERS) or member.training_run_id
                for member in islice(members, EXAMPLES_MAX)
            ],
        }
        for (action, code), members in sorted(found.items(), key=lambda item: (order.index(item[0][0]), -len(item[1])))
    ]


def _estimate(estimate: Estimate, releases: int) -> dict[str, Any]:
    return {
        "releases": releases,
        "at_once": estimate.at_once,
        "release_wall_s": round(estimate.release_wall_s, 1),
        "total_wall_s": round(estimate.total_wall_s(releases), 1),
        "basis": estimate.basis,
    }


def group_lines(summary: dict[str, Any]) -> list[str]:
    """Return the groups of `to_dict`, with up to three runs of each as examples."""
    lines = []
    for group in summary["groups"]:
        count, examples = group["runs"], ", ".join(group["examples"])
        more = f" and {count - EXAMPLES_MAX} more" if count > EXAMPLES_MAX else ""
        lines.append(f"{group['action']:<8}{count:>6} {'run ' if count == 1 else 'runs'}  {group['reason_code']}")
        lines += [f"{'':<8}{text}" for text in (group["meaning"], f"{examples}{more}") if text]
    return lines


def table_lines(summary: dict[str, Any]) -> list[str]:
    """Return the decisions of `to_dict` as a table with a heading. No line has more than 160 characters."""
    rows = [[heading for heading, _, _ in _TABLE]]
    for run in summary["runs"]:
        cells = run | {"ended_at": run["ended_at"].replace("T", " ").partition("+")[0][:16]}
        rows.append([_printable(cells[key], width) for _, key, width in _TABLE])
    widths = [width for _, _, width in _TABLE]
    lines = ["  ".join(_padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines, f"… and {summary['runs_omitted']} more runs."] if summary["runs_omitted"] else lines


def row(decision: dict[str, Any]) -> dict[str, str]:
    """Return the cells of one decision of `to_dict` by column, each of printable characters and limited length."""
    lengths = {"run_name": NAME_MAX_CHARACTERS}
    return {column: _printable(decision[column], lengths.get(column, CELL_MAX_CHARACTERS)) for column in COLUMNS}


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


def _printable(text: str, characters: int) -> str:
    # Run names are free text: a line break or an escape sequence in one must not forge a line of the log.
    return shorten(printable(text), characters)


def _padded(text: str, width: int) -> str:
    # In a terminal an accent of its own takes no column; a Chinese character and most emoji take two.
    columns = sum(0 if combining(character) else 1 + (east_asian_width(character) in "WF") for character in text)
    return text + " " * (width - columns)
