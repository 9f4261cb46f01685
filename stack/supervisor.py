"""Supervisor: a process that starts a service again when it has ended, with growing pauses and a limit.

A service that a command stopped has no pid file, and is not started. So commands stop the supervisor first.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from stack import interrupts, postgres, processes, services
from stack.context import Context
from stack.credentials import Credentials
from stack.environment import clean_environment
from stack.layout import MARKER, REPO, Layout
from stack.ports import Ports
from stack.private import write_private
from stack.processes import Command

NAME = "supervisor"
FILE = "restarts.json"
POLL_S = 1.0
# The pauses before the restarts: 0, 1, 2, 4 and 8 seconds.
RESTARTS_MAX = 5
PAUSE_S = 1.0
# A service that ran this long after a restart has a new count.
STABLE_S = 300.0


@dataclass(frozen=True, slots=True)
class Restarts:
    """Restarts of one service: their number, the local time of the last one, and True after the last try."""

    count: int = 0
    last: str = ""
    given_up: bool = False


def command(layout: Layout) -> Command:
    """Return the start command of the supervisor."""
    env = clean_environment(STACK_HOME=str(layout.home), PYTHONPATH=str(REPO))
    argv = (sys.executable, "-m", "stack.supervisor")
    # The services that it has started are its children, and outlive it.
    return Command(NAME, argv, env, layout.home, stop_signal=signal.SIGTERM)


def restarts(layout: Layout) -> dict[str, Restarts]:
    """Return the restarts since the start of the stack, by service."""
    try:
        return {name: Restarts(**found) for name, found in json.loads((layout.home / FILE).read_text()).items()}
    except (OSError, ValueError, TypeError):
        return {}


class Supervisor:
    """The loop of the process."""

    def __init__(self, layout: Layout, commands: Iterable[Command]) -> None:
        self._layout = layout
        self._commands = tuple(commands)
        self._restarts: dict[str, Restarts] = {}
        # On the monotonic clock: the last restart of a service, and the moment when its end was seen.
        self._restarted_at: dict[str, float] = {}
        self._ended_at: dict[str, float] = {}

    def run(self) -> None:
        """Check the services once in a second, for as long as the state folder exists."""
        while (self._layout.home / MARKER).exists():
            self.check()
            time.sleep(POLL_S)

    def check(self) -> None:
        """Restart the services that have ended, wait for the end of a pause, or give one up."""
        for command in self._commands:
            if processes.has_ended(self._layout, command.name):
                self._handle_end(command)

    def _handle_end(self, ended: Command) -> None:
        name, now = ended.name, time.monotonic()
        past = self._restarts.get(name, Restarts())
        if past.given_up:
            return
        since = self._ended_at.setdefault(name, now)
        stable = since - self._restarted_at.get(name, since) > STABLE_S
        count = 0 if stable else past.count
        if count == RESTARTS_MAX:
            self._record(name, dataclasses.replace(past, given_up=True))
            print(f"{name} has ended after {count} restarts and is not started again.", flush=True)
        elif now - since >= (PAUSE_S * 2 ** (count - 1) if count else 0.0):
            processes.stop(self._layout, [name])  # workers of a dead server still hold its port
            if name == postgres.NAME:
                # A new server refuses the lock of a killed one whose parent has not waited for it.
                postgres.prepare(self._layout)
            processes.start(self._layout, ended)
            self._restarted_at[name] = time.monotonic()
            del self._ended_at[name]
            self._record(name, Restarts(count + 1, time.strftime("%H:%M:%S")))
            print(f"{name} had ended and was started again ({count + 1} of {RESTARTS_MAX}).", flush=True)

    def _record(self, name: str, state: Restarts) -> None:
        self._restarts[name] = state
        found = {name: dataclasses.asdict(each) for name, each in self._restarts.items()}
        write_private(self._layout.home / FILE, json.dumps(found) + "\n")


def main() -> None:
    """Supervise the stack in ``STACK_HOME`` until a signal."""
    interrupts.install()
    layout = Layout.from_environ()
    context = Context(layout, Ports.remembered(layout.home), Credentials.load_or_generate(layout.home))
    try:
        Supervisor(layout, services.commands(context).values()).run()
    except KeyboardInterrupt:
        print("stopped", flush=True)


if __name__ == "__main__":
    main()
