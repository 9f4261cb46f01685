"""Tables and picture of docs/, from ``bench/results.json``: ``python -m bench.document``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bench.parts import PARTS
from bench.profile import as_table
from bench.results import read
from bench.scale import model, tables
from stack.layout import REPO

PAGE = REPO / "docs" / "performance.md"
PICTURE = REPO / "docs" / "images" / "performance.svg"
BEGIN, END = "<!-- figures: python -m bench.document -->", "<!-- end of figures -->"
PROFILE_BEGIN, PROFILE_END = "<!-- profile: python -m bench.document -->", "<!-- end of profile -->"

Entry = Mapping[str, Any]


def main() -> int:
    """Write all tables and the picture; return 1 without results."""
    entries = in_order(read())
    if not entries:
        print("There are no results. Run `make bench`.", file=sys.stderr)
        return 1
    PAGE.write_text(with_profile(with_figures(PAGE.read_text(encoding="utf-8"), entries), entries), encoding="utf-8")
    from bench.picture import draw

    draw(entries, PICTURE)
    tables.PAGE.write_text(with_scale(tables.PAGE.read_text(encoding="utf-8"), entries), encoding="utf-8")
    print(f"{len(entries)} figures written to {PAGE.relative_to(REPO)} and drawn in {PICTURE.relative_to(REPO)}")
    return 0


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries of existing figures in the order of the parts."""
    found = {entry["name"]: entry for entry in entries if "measured_at" in entry["detail"]}
    return [found[figure.name] for part in PARTS for figure in part.figures if figure.name in found]


def with_figures(page: str, entries: Sequence[Entry]) -> str:
    """Return the page with the picture and a table of the entries between its two marks.

    Raises:
        ValueError: A mark is missing.
    """
    picture = f"![The main figures]({PICTURE.relative_to(PAGE.parent)})"
    return _between(page, BEGIN, END, f"{picture}\n\n{figures(entries)}")


def with_profile(page: str, entries: Sequence[Entry]) -> str:
    """Return the page with the profile of a release between its marks; unchanged without a profile."""
    found = next((entry for entry in entries if entry["name"] == "release_profile_s"), None)
    return page if found is None else _between(page, PROFILE_BEGIN, PROFILE_END, as_table(found["detail"]))


def with_scale(page: str, entries: Sequence[Entry]) -> str:
    """Return the page on scaling with its tables; unchanged without the part `workers`."""
    there = {entry["name"] for entry in entries}
    return _between(page, BEGIN, END, tables.tables(entries)) if there.issuperset(model.NEEDED) else page


def _between(page: str, begin: str, end: str, text: str) -> str:
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"The page has no {begin} … {end}.")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def figures(entries: Sequence[Entry]) -> str:
    """Return the table, and a line about the machines of the entries."""
    rows = ["| figure | value | spread | goal | met | n | measured |", "|---|---|---|---|---|---|---|"]
    for entry in entries:
        met = {None: "", True: "yes", False: "**no**"}[entry["met"]]
        low, high = (f"{edge:.3g}" for edge in entry["spread"])
        cells = [f"`{entry['name']}`", f"{entry['value']:.3g} {entry['unit']}".strip(), f"{low} to {high}"]
        cells += [entry["goal"], met, str(entry["n"]), str(entry["detail"].get("measured_at", ""))[:10]]
        rows.append(f"| {' | '.join(cells)} |")
    hosts: dict[str, set[str]] = {}
    for entry in entries:
        if "host" in entry["detail"]:
            hosts.setdefault(_host(entry["detail"]["host"]), set()).add(entry["detail"].get("measured_at", "")[:10])
    lines = [f"{host} ({', '.join(sorted(days))})" for host, days in sorted(hosts.items())]
    return "\n".join([*rows, "", f"Machine: {'; '.join(lines) or 'unknown'}."])


def _host(host: Entry) -> str:
    return f"{host['cpu_model']}, {host['usable_cpus']} CPUs, {host['platform']}"


if __name__ == "__main__":
    sys.exit(main())
