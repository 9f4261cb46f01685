"""Run the measurements, print a table, and keep the figures in ``bench/results.json``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

from bench.big import big_model
from bench.export import export_wall_ratio
from bench.results import RESULTS, Result, table, write
from bench.speed import speedup_fp32_tiny, speedup_pt2_reference, speedup_self
from bench.watch.backfilling import backfill_ratio
from bench.watch.latency import run_to_release_s
from bench.watch.polling import poll_ratio
from stack import interrupts
from stack.errors import StackError

CASES: dict[str, Callable[[], Result]] = {
    "speedup_self": speedup_self,
    "speedup_pt2_reference": speedup_pt2_reference,
    **{f"speedup_fp32_tiny_b{size}": partial(speedup_fp32_tiny, size) for size in (1, 8, 32)},
    "export_wall_ratio": export_wall_ratio,
    # These start servers of their own, and take a quarter of an hour each; `backfill_ratio` twice that.
    "run_to_release_s": run_to_release_s,
    "poll_ratio": poll_ratio,
    "backfill_ratio": backfill_ratio,
    "big_model": big_model,
}
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Measure; the exit status is 0 whether or not the goals are met, for a goal is no test.

    A measurement whose servers fail, or a Ctrl-C, ends it; the results before that are kept.
    """
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=list(CASES), metavar="NAME", help=", ".join(CASES))
    chosen = parser.parse_args(arguments).only or list(CASES)
    interrupts.install()
    results: list[Result] = []
    try:
        for name in chosen:
            print(f"{name} ...", file=sys.stderr, flush=True)
            results.append(CASES[name]())
            write(results)
        status = 0
    except StackError as error:
        print(f"{name}: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the servers that it had started are stopped.", file=sys.stderr)
        status = INTERRUPTED
    if results:
        print(f"{table(results)}\n\nWritten to {RESULTS}")
    return status


if __name__ == "__main__":
    sys.exit(main())
