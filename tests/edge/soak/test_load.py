"""Verdict and table of the load."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
from rich.console import Console

from soak.load import problems, table

SOUND: dict[str, Any] = {
    "wall_s": 900.0,
    "releases": {
        "count": 50, "wall_s": 400.0, "states": {"success": 50}, "longest_wait_s": {"export": 12.0},
        "speedup_alone": [{"speedup": 3.0, "low": 2.8, "high": 3.1, "conclusive": True}],
        "speedup_loaded": [2.0, 2.9, 3.4], "not_settled": 9, "settled_and_different": [],
        "memory_peak_mb": 2800, "disk_peak_mb": {"staging": 3.0, "cache": 1.0},
    },
    "backfill": {
        "runs": 2000, "plan_totals": {"runs": 2000, "release": 2000}, "plan_task_s": 40.0, "backfill_state": "running",
        "peak_mb": {"airflow-scheduler": 280}, "growth": {"airflow-scheduler": 1.01},
    },
    "watch": {
        "polls": 43200, "simulated_h": 24.0, "wall_s": 300.0,
        "before": {"rss_kb": 90000, "objects": 100000, "files": 9},
        "after": {"rss_kb": 90100, "objects": 100012, "files": 9},
    },
}  # fmt: skip


def test_figures_without_a_problem_are_shown() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(table(SOUND))
    shown = console.export_text()
    assert list(problems(SOUND)) == []
    for text in ("50 ended in 400 s", "2800 MB, 4 MB", "2000 in 40 s", "9 · 0", "24.0 h in 300 s", "100000, 100012"):
        assert text in shown


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        ("releases", "states", {"success": 49, "failed": 1}, "of 50 releases: {'success': 49, 'failed': 1}"),
        ("releases", "settled_and_different", [{"speedup": 9.0}], "1 settled speedups differ"),
        ("backfill", "plan_totals", {"runs": 2000, "release": 1999}, "the plan of 2000 runs"),
        ("backfill", "backfill_state", "failed", "the state failed"),
        ("backfill", "growth", {"airflow-triggerer": 1.3}, "airflow-triggerer has grown by a factor of 1.3"),
        ("watch", "after", {"rss_kb": 90000, "objects": 143200, "files": 9}, "43200 more objects after 43200 polls"),
        ("watch", "after", {"rss_kb": 90000, "objects": 100000, "files": 10}, "1 more files"),
    ],
)
def test_each_kind_of_problem_is_reported(part: str, name: str, value: Any, words: str) -> None:
    found = copy.deepcopy(SOUND)
    found[part][name] = value
    (problem,) = problems(found)
    assert words in problem
