"""Run the measurements, print a table, and keep the figures in ``bench/results.json``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

from bench.export import export_wall_ratio
from bench.results import RESULTS, Result, table, write
from bench.speed import speedup_fp32_tiny, speedup_pt2_reference, speedup_self

CASES: dict[str, Callable[[], Result]] = {
    "speedup_self": speedup_self,
    "speedup_pt2_reference": speedup_pt2_reference,
    **{f"speedup_fp32_tiny_b{size}": partial(speedup_fp32_tiny, size) for size in (1, 8, 32)},
    "export_wall_ratio": export_wall_ratio,
}


def main(arguments: list[str] | None = None) -> int:
    """Measure; the exit status is 0 whether or not the goals are met, for a goal is no test."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(CASES), metavar="NAME", help=", ".join(CASES))
    chosen = parser.parse_args(arguments).only or list(CASES)
    results = []
    for name in chosen:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results.append(CASES[name]())
        write(results)
    print(table(results))
    print(f"\nWritten to {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
