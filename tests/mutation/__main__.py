"""`make mutation`: change the code that decides about a release, and list the changes that no test notices."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.mutation.mutants import Mutant, mutants_of
from tests.mutation.testing import ROOT, run_tests

CONFIGURATION = ROOT / "tests" / "mutation" / "mutation.toml"
COLUMNS = f"{'module':<26}{'mutants':>8}{'noticed':>9}{'equivalent':>12}{'survivors':>11}{'score':>8}{'time':>10}"
WIDTH = 150


@dataclass(frozen=True, kw_only=True)
class Target:
    """A module, its tests, and the explained mutants: entries of the configuration."""

    name: str
    tests: Sequence[str]
    equivalent: Sequence[dict[str, Any]]
    jobs: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """The mutants of one module, the unexplained survivors, and the explanations that no survivor needs."""

    name: str
    count: int
    equivalent: int
    survivors: list[Mutant]
    unused: list[str]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 when a mutant survives that the configuration does not explain, or an explanation is not needed."""
    configuration = tomllib.loads(CONFIGURATION.read_text())
    modules, equivalent = configuration["modules"], configuration["equivalent"]
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--only", action="append", choices=modules, metavar="MODULE")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="mutants at a time")
    options = parser.parse_args(arguments)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    targets = [
        Target(name=name, tests=modules[name], equivalent=equivalent.get(name, []), jobs=options.jobs)
        for name in options.only or modules
    ]
    print(COLUMNS, flush=True)
    # A process for each module: it imports all of the project except the modules that import the mutant.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        failed = [_print(result) for result in pool.imap(_run, targets)]
    return int(any(failed))


def _run(target: Target) -> Result:
    started = time.monotonic()
    path = ROOT / "include" / "onnx_release" / f"{target.name}.py"
    mutants = mutants_of(path.read_text())
    module = f"onnx_release.{target.name.replace('/', '.')}"
    survivors = run_tests(module, path, target.tests, mutants, target.jobs)
    explained = {
        index: [mutant for mutant in survivors if _explains(entry, mutant)]
        for index, entry in enumerate(target.equivalent)
    }
    known = [mutant for found in explained.values() for mutant in found]
    unknown = [mutant for mutant in survivors if mutant not in known]
    return Result(
        name=target.name,
        count=len(mutants),
        equivalent=len(survivors) - len(unknown),
        survivors=sorted(unknown, key=lambda mutant: mutant.line),
        unused=[entry["reason"] for index, entry in enumerate(target.equivalent) if not explained[index]],
        seconds=time.monotonic() - started,
    )


def _explains(entry: dict[str, Any], mutant: Mutant) -> bool:
    """Return True for a mutant of one of the entry's lines, or with one of its changed lines."""
    return mutant.before in entry.get("lines", ()) or mutant.after in entry.get("changed", ())


def _print(result: Result) -> bool:
    """Print a row of the table, and below it the unknown survivors. Return True when there are some."""
    noticed = result.count - result.equivalent - len(result.survivors)
    counts = f"{result.count:>8}{noticed:>9}{result.equivalent:>12}{len(result.survivors):>11}"
    score = noticed / (result.count - result.equivalent)
    print(f"{result.name:<26}{counts}{score:>8.1%}{result.seconds:>8.0f} s")
    for mutant in result.survivors:
        print(f"  {result.name}.py:{mutant.line}\n    - {mutant.before:.{WIDTH}}\n    + {mutant.after:.{WIDTH}}")
    for reason in result.unused:
        print(f"  {CONFIGURATION.name} explains a survivor that does not exist: {reason}")
    sys.stdout.flush()
    return bool(result.survivors or result.unused)


if __name__ == "__main__":
    sys.exit(main())
