"""Measure this project: print a table, and keep the figures in ``bench/results.json``.

The exit status is 0 when everything that was asked for was measured, whether or not the goals are met: a goal is no
test. It is 1 when a part could not be measured, which the last lines name, and 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.models import Models
from bench.parts import Part, chosen, listing
from bench.results import RESULTS, Result, table, write
from bench.setting import ROUNDS, Setting
from stack import interrupts

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; results before an interrupt, and those of the parts that went well, are kept."""
    asked = _parse(arguments)
    interrupts.install()
    results: list[Result] = []
    missing: list[str] = []
    status = 0
    try:
        run(asked.parts, asked, results, missing)
    except KeyboardInterrupt:
        missing.append("interrupted; the servers that were started are stopped")
        status = INTERRUPTED
    if results:
        kept = "\n\nA rehearsal: nothing was written." if asked.rehearse else f"\n\nWritten to {RESULTS}"
        print(f"{table(results)}{kept}")
    for reason in missing:
        print(f"NOT MEASURED {reason}", file=sys.stderr)
    return status or (1 if missing else 0)


def run(parts: Sequence[Part], asked: argparse.Namespace, results: list[Result], missing: list[str]) -> None:
    """Measure part after part into `results`; what cannot be measured is named in `missing`, and stops nothing."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        models = Models(folder=Path(folder), rehearsal=asked.rehearse)
        for number, part in enumerate(parts, 1):
            _announce(f"[{number}/{len(parts)}] {part.name}: {', '.join(part.figures)} (about {part.minutes} min)")
            began = time.monotonic()
            try:
                with tempfile.TemporaryDirectory(prefix=f"{part.name}-", dir=folder) as scratch:
                    setting = Setting(models=models, folder=Path(scratch), rounds=asked.rounds, full=asked.full)
                    for result in part.measure(setting):
                        results.append(result)
                        if not asked.rehearse:
                            write([result])
            except Exception as error:  # noqa: BLE001 - a server, a compiler, a disk: the other parts need not care
                missing.append(f"{part.name}: {error or type(error).__name__}")
                _announce(f"  {missing[-1]}")
            _announce(f"  {part.name} took {(time.monotonic() - began) / 60:.1f} min")


def _announce(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=f"a part or a figure: {listing()}")
    parser.add_argument("--rounds", type=_positive, default=ROUNDS, metavar="N", help="of each comparison of processes")
    parser.add_argument("--full", action="store_true", help="as many releases as the long parts were designed for")
    parser.add_argument("--rehearse", action="store_true", help="one round of tiny models: does it run; writes nothing")
    asked = parser.parse_args(arguments)
    try:
        asked.parts = chosen(asked.only)
    except KeyError as error:
        parser.error(error.args[0])
    if asked.rehearse:
        asked.rounds = 1
    return asked


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
