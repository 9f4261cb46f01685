"""Services of the stack: their names, order, start commands, addresses and checks of readiness."""

from __future__ import annotations

from stack import airflow, minio, mlflow_server, postgres, processes
from stack.context import Context
from stack.processes import Command

NAMES = (postgres.NAME, minio.NAME, mlflow_server.NAME, airflow.API_SERVER, *airflow.BACKGROUND)
# Order of stopping, one row at a time: writers before the services that they write to.
STOP_ORDER = ((*airflow.BACKGROUND, airflow.API_SERVER), (mlflow_server.NAME,), (minio.NAME, postgres.NAME))
PORT_OF = {minio.NAME: "minio", mlflow_server.NAME: "mlflow", airflow.API_SERVER: "airflow"}


def commands(context: Context) -> dict[str, Command]:
    """Return the start command of each service."""
    found = (postgres.command(context.layout), minio.command(context), mlflow_server.command(context))
    return {command.name: command for command in (*found, *airflow.commands(context))}


def is_ready(context: Context, name: str) -> bool:
    """Return True when the service runs and answers."""
    record = processes.find(context.layout, name)
    if record is None:
        return False
    if name == postgres.NAME:
        return postgres.is_healthy(context.layout)
    if name == minio.NAME:
        return minio.is_healthy(context)
    if name == mlflow_server.NAME:
        return mlflow_server.is_healthy(context)
    if name == airflow.API_SERVER:
        return airflow.is_healthy(context)
    return airflow.has_heartbeat(context, name, since=processes.started_at(record))


def address(context: Context, name: str) -> str:
    """Return the URL of a service, or the folder of the database's socket; empty for a service without an address."""
    urls = {
        postgres.NAME: str(postgres.socket_folder(context.layout)),
        minio.NAME: context.minio_url,
        mlflow_server.NAME: context.mlflow_url,
        airflow.API_SERVER: context.airflow_url,
    }
    return urls.get(name, "")
