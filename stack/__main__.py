"""The stack's command line: ``python -m stack up|down|status|demo|clean``."""

from __future__ import annotations

import argparse
import os
import sys

from rich.console import Console
from rich.table import Table

from stack import interrupts
from stack.airflow import API_SERVER
from stack.check import print_check
from stack.console import make_console, make_error_console
from stack.demo import Demo
from stack.errors import StackError
from stack.layout import Layout
from stack.lifecycle import down, load, states, up
from stack.result import print_addresses

INTERRUPTED = 130
# The exit status of `systemctl status` for a stopped service.
NOT_RUNNING = 3


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Return 0 on success; print one message and return another status otherwise."""
    parser = argparse.ArgumentParser(prog="python -m stack", description=__doc__)
    parser.add_argument("command", choices=sorted(_COMMANDS), help="action on the stack in STACK_HOME or .local")
    chosen = parser.parse_args(arguments).command
    interrupts.install()
    try:
        return _COMMANDS[chosen](Layout.from_environ(), make_console())
    except StackError as error:
        make_error_console().print(f"{chosen}: {error}")
        return 1
    except KeyboardInterrupt:
        make_error_console().print(f"{chosen}: interrupted. Everything that it started is stopped.")
        return INTERRUPTED


def _up(layout: Layout, console: Console) -> int:
    print_addresses(console, up(layout, console))
    return 0


def _down(layout: Layout, console: Console) -> int:
    down(layout, console)
    return 0


def _status(layout: Layout, console: Console) -> int:
    context = load(layout)
    if context is None:
        console.print(f"No stack in {layout.home}. Run `make up` to start one.")
        return NOT_RUNNING
    found = states(context)
    table = Table("service", "state", "pid", "restarts", "address")
    for state in found:
        again = f"{state.restarts.count}, last at {state.restarts.last}" if state.restarts.count else ""
        table.add_row(state.name, state.problem or "running", str(state.pid or ""), again, state.address)
    console.print(table)
    # A server that does not answer would only delay the table of its state.
    if any(state.name == API_SERVER and not state.problem for state in found):
        print_check(console, context)
    return NOT_RUNNING if any(state.problem for state in found) else 0


def _demo(layout: Layout, console: Console) -> int:
    return Demo(layout, console).run(once=os.environ.get("ONCE", "") not in ("", "0"))


def _clean(layout: Layout, console: Console) -> int:
    down(layout, console)
    console.print(f"Removed {layout.home}." if layout.remove() else f"{layout.home} does not exist.")
    return 0


_COMMANDS = {"up": _up, "down": _down, "status": _status, "demo": _demo, "clean": _clean}

if __name__ == "__main__":
    sys.exit(main())
