"""Start, stop and state of the whole stack."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from rich.console import Console

from stack import airflow, interrupts, minio, mlflow_server, postgres, processes, services, signing, supervisor
from stack.context import Context
from stack.credentials import Credentials
from stack.errors import StackError
from stack.layout import Layout, check_machine
from stack.ports import Ports, variables
from stack.processes import Command
from stack.services import NAMES, PORT_OF, STOP_ORDER
from stack.setup import configure_airflow, write_env_file


@dataclass(frozen=True, slots=True)
class ServiceState:
    """State of one service. `problem` is empty for a running one; `restarts` counts since the start of the stack."""

    name: str
    pid: int | None
    problem: str
    address: str
    restarts: supervisor.Restarts


def up(layout: Layout, console: Console) -> Context:
    """Start every stopped service and return the running stack. A failure stops all services.

    Raises `StackError` for a taken port, a missing program, a full disk, or a service that does not start.
    """
    check_machine(layout.home)
    layout.create()
    with layout.locked():
        _refuse_sqlite(layout)
        ports = Ports.choose(layout.home)
        if not is_up(layout):
            processes.stop(layout, [supervisor.NAME])  # it would start what is started here
        running = [name for name in NAMES if processes.find(layout, name)]
        context = _settle_ports(layout, ports, running)
        if len(running) == len(NAMES) and not any(state.problem for state in states(context)):
            changed = " Run `make down` first to apply the new settings." if airflow.settings_changed(context) else ""
            console.print(f"The stack is already up.{changed}")
            return context
        with _nothing_left_running(layout):
            processes.stop(layout, [supervisor.NAME])
            (layout.home / supervisor.FILE).unlink(missing_ok=True)
            _start_all(context, console)
            processes.start(layout, supervisor.command(layout))
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
    """Return the state of each service, and of the supervisor."""
    restarts = supervisor.restarts(context.layout)
    return [_state(context, name, restarts.get(name, supervisor.Restarts())) for name in (*NAMES, supervisor.NAME)]


def _state(context: Context, name: str, restarts: supervisor.Restarts) -> ServiceState:
    record = processes.find(context.layout, name)
    if record is not None:
        problem = "" if name == supervisor.NAME or services.is_ready(context, name) else "not answering"
    elif not processes.has_ended(context.layout, name):
        problem = "stopped"
    elif name == supervisor.NAME or processes.find(context.layout, supervisor.NAME) is None:
        problem = "ended"
    else:
        problem = "ended, not started again" if restarts.given_up else "ended, starts again"
    pid = record.pid if record else None
    return ServiceState(name, pid, problem, services.address(context, name), restarts)


def lost(layout: Layout) -> list[str]:
    """Return the services that have ended and are not started again."""
    ended = [name for name in NAMES if processes.has_ended(layout, name)]
    if processes.find(layout, supervisor.NAME) is None:
        return ended
    restarts = supervisor.restarts(layout)
    return [name for name in ended if restarts.get(name, supervisor.Restarts()).given_up]


def _refuse_sqlite(layout: Layout) -> None:
    """Raise `StackError` for the state of an earlier version, whose databases were SQLite files."""
    for path in (layout.airflow_home / "airflow.db", layout.mlflow / "mlflow.db"):
        if path.exists():
            raise StackError(
                f"{layout.home} has the databases of an earlier version ({path.name}), which this one cannot read. "
                "Run `make clean-demo` to start with an empty stack, or set STACK_HOME to another folder."
            )


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
        # First the supervisor, which would start the others again.
        stopped = [name for row in ((supervisor.NAME,), *STOP_ORDER) for name in processes.stop(layout, row)]
        (layout.home / supervisor.FILE).unlink(missing_ok=True)
        postgres.remove_socket_folder(layout)
        return stopped


def _start_all(context: Context, console: Console) -> None:
    """Start the services in order of dependency. MLflow starts while Airflow's database is created."""
    write_env_file(context)
    signing.prepare(context.layout)
    postgres.prepare(context.layout)
    began_postgres = _start(context, postgres.command(context.layout))
    minio.prepare(context)
    began_minio = _start(context, minio.command(context))
    _await(context, console, postgres.NAME, began_postgres)
    _await(context, console, minio.NAME, began_minio)
    minio.set_up(context)
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
        processes.await_ready(context.layout, name, partial(services.is_ready, context, name), began)
    address = services.address(context, name)
    console.print(f"  {name:<22} ready after {time.monotonic() - began:4.1f} s  {address}".rstrip())
