"""`make coverage`: lines and branches of each room, of core and edge, and of all. It fails below the limit."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import coverage

ROOT = Path(__file__).parents[2]
FOLDERS = ("include", "plugins")
PARTS = {"onnx_release": "core", "airflow_onnx": "edge"}


def main() -> int:
    """Print a line for each room and for each file below the limit. Return 1 when core, edge or all are below it."""
    data = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"))
    data.load()
    least = float(str(data.get_option("report:fail_under")))
    report = Path(data.config.data_file).with_name("report.json")
    data.json_report(outfile=str(report))
    files = {
        name: Counter({key: value for key, value in file["summary"].items() if isinstance(value, int)})
        for name, file in json.loads(report.read_text())["files"].items()
    }
    rooms: dict[str, Counter[str]] = {}
    totals: dict[str, Counter[str]] = {}
    for name, counts in files.items():
        package, room = [part for part in Path(name).parts if part not in FOLDERS][:2]
        rooms.setdefault(f"{package}/{room}", Counter()).update(counts)
        for total in (PARTS[package], "all"):
            totals.setdefault(total, Counter()).update(counts)
    print(f"{'room':<44}{'lines':>8}{'missed':>8}{'branches':>10}{'missed':>8}{'covered':>9}")
    for room, counts in [*sorted(rooms.items()), *totals.items()]:
        print(_row(room, counts))
    print(f"\nFiles below {least:g} %:")
    for name, counts in sorted(files.items(), key=lambda item: _percent(item[1])):
        if _percent(counts) < least:
            print(_row("/".join(part for part in Path(name).parts if part not in FOLDERS), counts))
    return int(any(_percent(counts) < least for counts in totals.values()))


def _percent(counts: Counter[str]) -> float:
    """Return the covered share of lines and branches together, as coverage.py does."""
    possible = counts["num_statements"] + counts["num_branches"]
    return 100.0 * (counts["covered_lines"] + counts["covered_branches"]) / possible if possible else 100.0


def _row(name: str, counts: Counter[str]) -> str:
    lines = f"{counts['num_statements']:>8}{counts['missing_lines']:>8}"
    return f"{name:<44}{lines}{counts['num_branches']:>10}{counts['missing_branches']:>8}{_percent(counts):>8.1f}%"


if __name__ == "__main__":
    sys.exit(main())
