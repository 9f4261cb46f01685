"""The three ports of the stack: choice, storage, and the check that they are free."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from stack.errors import StackError
from stack.private import write_private

HOST = "127.0.0.1"
FILE = "ports.json"


@dataclass(frozen=True, slots=True)
class Ports:
    """Port of each service on 127.0.0.1."""

    airflow: int = 8080
    mlflow: int = 5000
    minio: int = 9000

    @classmethod
    def choose(cls, home: Path) -> Ports:
        """Return the ports of ``AIRFLOW_PORT`` and so on, else those of the last start, else the defaults."""
        last = cls.remembered(home)
        names = [field.name for field in dataclasses.fields(cls)]
        chosen = {name: _from_environ(name, getattr(last, name)) for name in names}
        if len(set(chosen.values())) < len(names):
            raise StackError(f"Two services cannot share a port: {chosen}. Change one of {variables(names)}.")
        return cls(**chosen)

    @classmethod
    def free(cls) -> Ports:
        """Return free ports, for a second stack."""
        return cls(*free_ports(3))

    @classmethod
    def remembered(cls, home: Path) -> Ports:
        """Return the ports of the last start, or the defaults."""
        try:
            return cls(**json.loads((home / FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def remember(self, home: Path) -> None:
        """Store the ports for later commands without the variables."""
        write_private(home / FILE, json.dumps(dataclasses.asdict(self)) + "\n")

    def require_free(self, names: Iterable[str]) -> None:
        """Raise `StackError` naming every port of `names` that someone listens on, and the variable that moves it."""
        taken = [(name, getattr(self, name)) for name in names if not _is_free(getattr(self, name))]
        if taken:
            lines = [
                f"Port {port} ({name}) is taken{_holder(port)}. Stop it, or run with {variables([name])}=<free port>."
                for name, port in taken
            ]
            raise StackError("\n".join(lines))


def free_ports(count: int) -> list[int]:
    """Return different free ports of 127.0.0.1."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def variables(names: Iterable[str]) -> str:
    """Return the environment variables for the ports of `names`."""
    return ", ".join(f"{name.upper()}_PORT" for name in names)


def _from_environ(name: str, fallback: int) -> int:
    variable = variables([name])
    text = os.environ.get(variable) or str(fallback)
    if not text.isdecimal() or not 1024 <= int(text) <= 65535:
        raise StackError(f"{variable}={text} is not a port between 1024 and 65535.")
    return int(text)


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Otherwise connections of the last run in TIME_WAIT count as a taken port for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _holder(port: int) -> str:
    """Return `` by NAME (pid N)`` for the listening process, when this user may see it."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if listens and connection.pid is not None:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
