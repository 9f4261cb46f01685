"""Picture of the main figures; equal results give equal bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Entry = Mapping[str, Any]

GOOD, BAD, PLAIN = "#0e7490", "#b91c1c", "#94a3b8"
_SPEEDS = ("speedup_fp32_", "speedup_int8_", "vs_compile_")
# Quality of the measurement and size: not costs.
_LEFT_OUT = ("speedup_repeatability", "artifact_overhead")
_STYLE: Any = {"svg.hashsalt": "bench", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.0}


def draw(entries: Sequence[Entry], path: Path) -> None:
    """Draw speedups over PyTorch, and costs as parts of their limits; missing figures are left out."""
    speeds = [entry for entry in entries if entry["name"].startswith(_SPEEDS)]
    costs = [entry for entry in entries if limit_of(entry, "<=") and entry["name"] not in _LEFT_OUT]
    with plt.rc_context(_STYLE):
        rows = (max(1, len(speeds)), max(1, len(costs)))
        drawing, panels = plt.subplots(
            2, 1, figsize=(8.0, 1.8 + 0.3 * sum(rows)), height_ratios=rows, layout="constrained"
        )
        _bars(panels[0], speeds, "How many times as fast as PyTorch (black: the goal)", relative=False)
        _bars(panels[1], costs, "Costs as parts of their limits (black: the limit)", relative=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, format="svg", metadata={"Date": None})
        plt.close(drawing)


def limit_of(entry: Entry, sign: str) -> float | None:
    """Return the limit of a goal such as ``<= 1.3, released``; None for another kind of goal."""
    found = re.match(rf"{re.escape(sign)} ([\d.]+)", entry["goal"])
    return float(found[1]) if found else None


def _bars(panel: Axes, entries: Sequence[Entry], title: str, *, relative: bool) -> None:
    panel.set_title(title, loc="left", fontsize=10)
    for row, entry in enumerate(entries):
        limit = limit_of(entry, "<=" if relative else ">=")
        unit = limit if relative and limit else 1.0
        value, (low, high) = entry["value"] / unit, (edge / unit for edge in entry["spread"])
        color = {True: GOOD, False: BAD, None: PLAIN}[entry["met"]]
        panel.barh(row, value, color=color, height=0.6)
        panel.hlines(row, low, high, color="#0f172a", linewidth=1.0)
        if limit is not None:
            panel.vlines(limit / unit, row - 0.45, row + 0.45, color="black", linewidth=2.0)
        label = f"  {entry['value']:.3g} {entry['unit']}".rstrip()
        panel.text(max(value, high, limit / unit if limit else 0.0), row, label, va="center")
    panel.set_yticks(range(len(entries)), [entry["name"] for entry in entries])
    panel.invert_yaxis()
    panel.margins(x=0.12)
    # The difference of two noisy times can be negative.
    panel.set_xlim(left=0.0)
    panel.spines[["top", "right"]].set_visible(False)
