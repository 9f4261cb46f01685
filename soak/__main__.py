"""Command of ``make soak``: ``python -m soak [--only WORD ...] [--minutes N] [--seed N] [--json FILE] [--keep]``.

It starts a local stack of its own, releases many small models under faults, and checks the statements after each. Then
it searches everything for the secrets of the stack.
Exit status: 0 every statement is true and every release survived · 1 one is not, or a release did not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from soak import canary_search
from soak import rig as rigs
from soak.rig import Rig
from soak.scenario import Outcome, Scenario
from soak.scenarios import SCENARIOS
from soak.statements import Violation, violations
from soak.table import Ended, document, table
from stack import interrupts
from stack.console import make_console, make_error_console
from stack.errors import StackError
from stack.layout import Layout

INTERRUPTED = 130
# The executor of the stack has four slots.
_AT_ONCE = 4


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], help="scenarios whose name contains one of these words")
    parser.add_argument("--minutes", type=float, default=45.0, help="start no scenario after this time (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random moments (default: a new one)")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--keep", action="store_true", help="keep the state folder")
    parser.add_argument("--list", action="store_true", help="print the names of the scenarios")
    options = parser.parse_args(arguments)
    chosen = [one for one in SCENARIOS if not options.only or any(word in one.name for word in options.only)]
    if options.list:
        print("\n".join(scenario.name for scenario in chosen))
        return 0
    interrupts.install()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    home = Path(tempfile.mkdtemp(prefix="onnx-soak-"))
    console = make_console()
    console.print(f"Seed {seed}. State in {home}.")
    began = time.monotonic()
    try:
        with rigs.running(home, console) as rig:
            ended, at_rest = _soak(rig, console, chosen, seed, began + 60 * options.minutes)
    except StackError as error:
        make_error_console().print(f"soak: {error}")
        return 1
    except KeyboardInterrupt:
        make_error_console().print("soak: interrupted. Everything that it started is stopped.")
        return INTERRUPTED
    finally:
        if not options.keep:
            Layout(home).remove()
    wall_s = time.monotonic() - began
    result = _report(console, ended, at_rest, f"Soak with seed {seed}, {wall_s / 60:.0f} minutes")
    if options.json:
        options.json.write_text(json.dumps(document(ended, at_rest, seed, wall_s), indent=2) + "\n")
    return result


def _soak(
    rig: Rig, console: Console, chosen: list[Scenario], seed: int, deadline: float
) -> tuple[Ended, list[Violation]]:
    """Run the scenarios, first those that run beside others. Then check the whole deployment."""

    def run(scenario: Scenario) -> tuple[Scenario, Outcome]:
        began = time.monotonic()
        if began > deadline and not scenario.last:
            return scenario, Outcome(skipped="no time was left")
        try:
            outcome = scenario.run(rig, random.Random(f"{seed} {scenario.name}"))  # noqa: S311 - moments, no secrets
        except Exception as error:  # noqa: BLE001 - servers that were just killed can raise anything
            console.print(traceback.format_exc(limit=-3), highlight=False)
            outcome = Outcome(problem=f"the scenario ended with {type(error).__name__}: {error}")
        outcome.wall_s = time.monotonic() - began
        _print(console, scenario, outcome)
        return scenario, outcome

    rig.spare.extend(rig.train(len(chosen)))
    canary_search.plant(rig)
    with canary_search.watched_children(rig):
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            ended = list(pool.map(run, [one for one in chosen if not one.alone and not one.last]))
        ended += [run(one) for one in chosen if one.alone]
    ended += [run(one) for one in chosen if one.last]
    return ended, violations(rig.places())


def _print(console: Console, scenario: Scenario, outcome: Outcome) -> None:
    state = "skipped" if outcome.skipped else "failed" if _has_failed(outcome) else "ok"
    injected = ", ".join(f"{kind} {count}" for kind, count in outcome.injected.items())
    console.print(f"{outcome.wall_s:6.0f} s  {state:<8} {scenario.name}  ({injected})", highlight=False)
    figures = ", ".join(f"{name}: {value:g}" for name, value in outcome.figures.items())
    for text in (figures, outcome.skipped, outcome.problem, *(violation.text for violation in outcome.violations)):
        if text:
            console.print(f"          {text[:500]}", highlight=False, markup=False)


def _report(console: Console, ended: Ended, at_rest: list[Violation], title: str) -> int:
    console.print(table(ended, title))
    for violation in at_rest:
        console.print(f"At rest: {violation.kind}: {violation.text}", highlight=False, markup=False)
    skipped = sum(bool(outcome.skipped) for _, outcome in ended)
    failed = sum(_has_failed(outcome) for _, outcome in ended)
    console.print(f"{len(ended)} scenarios: {failed} failed, {skipped} skipped.", highlight=False)
    return status(ended, at_rest)


def status(ended: Ended, at_rest: list[Violation]) -> int:
    """Return the exit status of the command."""
    return 1 if at_rest or any(_has_failed(outcome) for _, outcome in ended) else 0


def _has_failed(outcome: Outcome) -> bool:
    return bool(outcome.problem or outcome.violations or outcome.canaries)


if __name__ == "__main__":
    sys.exit(main())
