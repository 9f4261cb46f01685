"""Start, stop and state of the whole stack."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console

from stack import airflow, interrupts, minio, mlflow_server, processes
from stack.context import Context
from stack.credentials import Credentials
from stack.errors import StackError
from stack.layout import Layout, check_machine
from stack.ports import Ports, variables
from stack.processes import Command
from stack.setup import configure_airflow, write_env_file

NAMES = (minio.NAME, mlflow_server.NAME, airflow.API_SERVER, *airflow.BACKGROUND)
# Order of stopping, one row at a time: writers before the services that they write to.
STOP_ORDER = ((*airflow.BACKGROUND, airflow.API_SERVER), (mlflow_server.NAME,), (minio.NAME,))
PORT_OF = {minio.NAME: "minio", mlflow_server.NAME: "mlflow", airflow.API_SERVER: "airflow"}


@dataclass(frozen=True, slots=True)
class ServiceState:
    """State of one service."""

    name: str
    pid: int | None
    healthy: bool
    address: str


def up(layout: Layout, console: Console) -> Context:
    """Start every stopped service and return the running stack. A failure stops all services.

    Raises `StackError` for a taken port, a missing program, a full disk, or a service that does not start.
    """
    check_machine(layout.home)
    layout.create()
    with layout.locked():
        ports = Ports.choose(layout.home)
        running = [name for name in NAMES if processes.find(layout, name)]
        context = _settle_ports(layout, ports, running)
        if len(running) == len(NAMES) and all(state.healthy for state in states(context)):
            changed = " Run `make down` first to apply the new settings." if airflow.settings_changed(context) else ""
            console.print(f"The stack is already up.{changed}")
            return context
        with _nothing_left_running(layout):
            _start_all(context, console)
    return context


def down(layout: Layout, console: Console) -> None:
    """Stop every service of this state folder and wait until its last process has ended."""
    if not layout.pids.is_dir():
        console.print("The stack is not running.")
        return
    with layout.locked():
        stopped = _stop_all(layout)
    console.print(f"Stopped: {', '.join(stopped)}." if stopped else "The stack is not running.")


def is_up(layout: Layout) -> bool:
    """Return True when the process of every service runs."""
    return all(processes.find(layout, name) for name in NAMES)


def load(layout: Layout) -> Context | None:
    """Return the stack of the state folder, running or stopped; None when there is none."""
    if not layout.home.is_dir() or not any(layout.home.iterdir()):
        return None
    layout.create()
    return Context(layout, Ports.choose(layout.home), Credentials.load_or_generate(layout.home))


def states(context: Context) -> list[ServiceState]:
    """Return the state of each service."""
    probes = _probes(context)
    found = {name: processes.find(context.layout, name) for name in NAMES}
    return [
        ServiceState(
            name=name,
            pid=record.pid if record else None,
            healthy=record is not None and probes[name](),
            address=_addresses(context).get(name, ""),
        )
        for name, record in found.items()
    ]


def _settle_ports(layout: Layout, ports: Ports, running: list[str]) -> Context:
    """Check the ports of the services to start. Running services keep theirs."""
    settled = Ports.remembered(layout.home)
    moved = [PORT_OF[name] for name in running if name in PORT_OF]
    moved = [name for name in moved if getattr(ports, name) != getattr(settled, name)]
    if moved:
        raise StackError(f"The stack runs on other ports. Run `make down` before you change {variables(moved)}.")
    ports.require_free(PORT_OF[name] for name in PORT_OF if name not in running)
    ports.remember(layout.home)
    return Context(layout, ports, Credentials.load_or_generate(layout.home))


@contextlib.contextmanager
def _nothing_left_running(layout: Layout) -> Iterator[None]:
    """Stop all services when the start fails or is interrupted."""
    try:
        yield
    except BaseException:
        _stop_all(layout)
        raise


def _stop_all(layout: Layout) -> list[str]:
    with interrupts.ignored():
        return [name for row in STOP_ORDER for name in processes.stop(layout, row)]


def _start_all(context: Context, console: Console) -> None:
    """Start the services in order of dependency. MLflow starts while Airflow's database is created."""
    write_env_file(context)
    minio.prepare(context)
    began = _start(context, minio.command(context))
    _await(context, console, minio.NAME, began)
    minio.create_buckets(context)
    mlflow_server.prepare(context)
    began_mlflow = _start(context, mlflow_server.command(context))
    airflow.prepare(context)
    # In parallel: most of a component's start is imports, which use one CPU each.
    began_airflow = {command.name: _start(context, command) for command in airflow.commands(context)}
    _await(context, console, mlflow_server.NAME, began_mlflow)
    mlflow_server.mark_complete(context)
    _await(context, console, airflow.API_SERVER, began_airflow.pop(airflow.API_SERVER))
    configure_airflow(context)
    for name, began in began_airflow.items():
        _await(context, console, name, began)


def _start(context: Context, command: Command) -> float:
    """Start the service unless it runs. Return the time on the monotonic clock."""
    if processes.find(context.layout, command.name) is None:
        processes.stop(context.layout, [command.name])  # workers of a dead server still hold its port
        processes.start(context.layout, command)
    return time.monotonic()


def _await(context: Context, console: Console, name: str, began: float) -> None:
    with console.status(f"{name}: starting"):
        processes.await_ready(context.layout, name, _probes(context)[name], began)
    address = _addresses(context).get(name, "")
    console.print(f"  {name:<22} ready after {time.monotonic() - began:4.1f} s  {address}".rstrip())


def _probes(context: Context) -> dict[str, Callable[[], bool]]:
    background = {name: _heartbeat_probe(context, name) for name in airflow.BACKGROUND}
    return {
        minio.NAME: lambda: minio.is_healthy(context),
        mlflow_server.NAME: lambda: mlflow_server.is_healthy(context),
        airflow.API_SERVER: lambda: airflow.is_healthy(context),
        **background,
    }


def _heartbeat_probe(context: Context, name: str) -> Callable[[], bool]:
    return lambda: airflow.has_heartbeat(context, name)


def _addresses(context: Context) -> dict[str, str]:
    return {
        minio.NAME: context.minio_url,
        mlflow_server.NAME: context.mlflow_url,
        airflow.API_SERVER: context.airflow_url,
    }
