"""Measure this project: print a table and write the figures to ``bench/results.json``.

The exit status is 0 when all chosen parts were measured; missed goals do not change it. It is 1 when a part was not
measured; the last lines name it. It is 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.figure import ROUNDS, Part, Result, Setting
from bench.models import Models
from bench.parts import chosen, listing
from bench.results import RESULTS, table, write
from stack import interrupts

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; results are kept after an interrupt or a failed part."""
    options = _parse(arguments)
    interrupts.install()
    results: list[Result] = []
    missing: list[str] = []
    status = 0
    try:
        run(options.parts, options, results, missing)
    except KeyboardInterrupt:
        missing.append("interrupted; the started servers are stopped")
        status = INTERRUPTED
    if results:
        written = "A rehearsal: nothing was written." if options.rehearse else f"Written to {RESULTS}"
        print(f"{table(results)}\n\n{written}")
    for reason in missing:
        print(f"NOT MEASURED {reason}", file=sys.stderr)
    return status or (1 if missing else 0)


def run(parts: Sequence[Part], options: argparse.Namespace, results: list[Result], missing: list[str]) -> None:
    """Measure all parts into `results`; failed parts are named in `missing`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        models = Models(folder=Path(folder), rehearsal=options.rehearse)
        for number, part in enumerate(parts, 1):
            figures = ", ".join(figure.name for figure in part.figures)
            _print(f"[{number}/{len(parts)}] {part.name}: {figures} (about {part.minutes} min)")
            began = time.monotonic()
            try:
                with tempfile.TemporaryDirectory(prefix=f"{part.name}-", dir=folder) as scratch:
                    setting = Setting(models=models, folder=Path(scratch), rounds=options.rounds, full=options.full)
                    for result in part.measure(setting):
                        results.append(result)
                        if not options.rehearse:
                            write([result])
            except Exception as error:  # noqa: BLE001 - a failed server, compiler or disk must not stop other parts
                missing.append(f"{part.name}: {error or type(error).__name__}")
                _print(f"  {missing[-1]}")
            _print(f"  {part.name} took {(time.monotonic() - began) / 60:.1f} min")


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=f"part or figure: {listing()}")
    parser.add_argument("--rounds", type=_positive, default=ROUNDS, metavar="N", help="of each comparison of processes")
    parser.add_argument("--full", action="store_true", help="use the full number of releases in the long parts")
    parser.add_argument("--rehearse", action="store_true", help="one round with tiny models; writes nothing")
    options = parser.parse_args(arguments)
    try:
        options.parts = chosen(options.only)
    except KeyError as error:
        parser.error(error.args[0])
    if options.rehearse:
        options.rounds = 1
    return options


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
