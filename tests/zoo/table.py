"""`make zoo`: release every model of the zoo, and print the results."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from tests.zoo.catalogue import ZOO
from tests.zoo.entry import Entry
from tests.zoo.running import Outcome, release

HEADER = ("model", "field", "stored as", "what is special", "outcome", "worst MAE", "seconds")
# Columns of `docs/zoo.md` that differ between machines.
MEASURED = ("worst MAE", "seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 when an outcome is not the expected one."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo.table", description=__doc__)
    parser.add_argument("--only", action="append", choices=[entry.name for entry in ZOO], metavar="NAME")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/zoo.md")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    chosen = [entry for entry in ZOO if options.only is None or entry.name in options.only]
    print(_line(HEADER, options.markdown), flush=True)
    if options.markdown:
        print("|" + " --- |" * len(HEADER))
    surprises = [surprise for entry in chosen if (surprise := _show(entry, options.markdown))]
    total = f"{len(chosen)} models, {len(surprises)} of them not as expected."
    print("\n".join(["", total, *surprises]), file=sys.stderr if options.markdown else sys.stdout)
    return 1 if surprises else 0


def row(entry: Entry, outcome: Outcome) -> tuple[str, ...]:
    """Return the entry's line of the table, with the expected result or with NOT before it."""
    came = str(entry.expected) if outcome.meets(entry.expected) else f"NOT {entry.expected}"
    mae = "" if outcome.mae is None or outcome.refusal else f"{outcome.mae:.0e}"
    return entry.name, entry.field, entry.store, entry.about, came, mae, f"{outcome.wall_s:.1f}"


def _show(entry: Entry, markdown: bool) -> str:
    """Print one line. Return a text for the summary when the outcome is not the expected one."""
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        try:
            outcome = release(entry, Path(scratch))
        except Exception as error:  # noqa: BLE001 - one crash must not hide what becomes of the others
            outcome = Outcome(crash=f"crashed: {type(error).__name__}: {error}")
    print(_line(row(entry, outcome), markdown), flush=True)
    if outcome.meets(entry.expected):
        return ""
    return f"{entry.name}: expected {entry.expected}, got {outcome}"


def _line(cells: Sequence[str], markdown: bool) -> str:
    if markdown:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    widths = (22, 10, 12, 58, 34, 10, 7)
    return " ".join(f"{cell:{width}.{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


if __name__ == "__main__":
    sys.exit(main())
