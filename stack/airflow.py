"""Airflow's settings and its four components, which listen on loopback or not at all."""

from __future__ import annotations

import configparser
import io
import json
import os
from datetime import datetime
from importlib.metadata import version
from typing import Any

import requests

from stack import children, postgres, signing
from stack.context import Context
from stack.environment import clean_environment
from stack.errors import StackError
from stack.http import TIMEOUT_S, session
from stack.layout import REPO, tool
from stack.minio import RELEASE_BUCKET
from stack.ports import HOST
from stack.private import write_private
from stack.processes import Command
from stack.provider import write_metadata
from stack.training import EXPERIMENT

PROVIDER = "provider"
API_SERVER = "airflow-api-server"
# The variables of docker-compose.yaml for the same options.
_SHORT = ("ALLOW_PICKLE", "FACTORY_PACKAGES", "WATCH_EXPERIMENTS", "WATCH_ROUTES")
# The start of a process is known to a second. Airflow sends no heartbeat in its first second.
START_ERROR_S = 1.0
BACKGROUND = ("airflow-scheduler", "airflow-triggerer", "airflow-dag-processor")


def prepare(context: Context) -> None:
    """Write settings and login. Migrate the metadata database once for each Airflow version."""
    home = context.layout.airflow_home
    write_private(home / "airflow.cfg", _settings(context))
    write_metadata(home / PROVIDER)
    login = {context.credentials.airflow_username: context.credentials.airflow_password}
    write_private(home / "simple_auth_manager_passwords.json.generated", json.dumps(login) + "\n")
    marker, installed = home / "migrated", version("apache-airflow")
    if marker.exists() and marker.read_text() == installed:
        return
    if not marker.exists():
        postgres.create_database(context.layout, postgres.AIRFLOW)
    argv = [tool("airflow"), "db", "migrate"]
    status, output = children.run(argv, environment(context), home)
    if status != 0:
        raise StackError(f"`airflow db migrate` failed:\n{output[-1500:]}")
    marker.write_text(installed)


def commands(context: Context) -> list[Command]:
    """Return the start commands of the components.

    `airflow standalone` listens on 0.0.0.0, and no setting changes the address of the log servers. The log servers are
    not started: with LocalExecutor the API server reads task logs from the folder that the tasks write to.
    """
    home, env = context.layout.airflow_home, environment(context)
    api = [tool("airflow"), "api-server", "--host", HOST, "--port", str(context.ports.airflow), "--workers", "1"]
    arguments = (["scheduler", "--skip-serve-logs"], ["triggerer", "--skip-serve-logs"], ["dag-processor"])
    background = [
        Command(name, (tool("airflow"), *argv), env, home) for name, argv in zip(BACKGROUND, arguments, strict=True)
    ]
    return [Command(API_SERVER, tuple(api), env, home), *background]


def is_healthy(context: Context) -> bool:
    """Return True when the API server answers and reaches its database."""
    return _health(context, "metadatabase").get("status") == "healthy"


def has_heartbeat(context: Context, name: str, since: float) -> bool:
    """Return True when the API server reports a recent heartbeat of a background component.

    :param since: start of its process; an earlier heartbeat is that of an ended process.
    """
    component = name.removeprefix("airflow-").replace("-", "_")
    health = _health(context, component)
    try:
        heartbeat = datetime.fromisoformat(str(health[f"latest_{component}_heartbeat"])).timestamp()
    except (KeyError, ValueError):
        return False
    return health["status"] == "healthy" and heartbeat > since + START_ERROR_S


def _health(context: Context, component: str) -> dict[str, Any]:
    try:
        response = session().get(f"{context.airflow_url}/api/v2/monitor/health", timeout=TIMEOUT_S)
        return dict(response.json()[component]) if response.ok else {}
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return {}


def environment(context: Context) -> dict[str, str]:
    """Return the environment of Airflow's processes and of its command line. Secrets are in airflow.cfg."""
    return clean_environment(
        AIRFLOW_HOME=str(context.layout.airflow_home),
        PYTHONPATH=python_path(context),
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false",
    )


def python_path(context: Context) -> str:
    """Return Airflow's import path. Airflow does not add `include/`, and adds `plugins/` too late."""
    return os.pathsep.join(map(str, (REPO / "include", REPO / "plugins", context.layout.airflow_home / PROVIDER)))


def settings_changed(context: Context) -> bool:
    """Return True when the running components were started with other settings than those of the environment."""
    return (context.layout.airflow_home / "airflow.cfg").read_text() != _settings(context)


def _release_options() -> dict[str, str]:
    """Return the options of `[onnx_release]`: the stack's own, the short variables, then Airflow's variables.

    They are in airflow.cfg, not in the environment, so that the `airflow` command line of another shell has them too.
    """
    options = {"factory_packages": "examples", "watch_experiments": EXPERIMENT, "bucket": RELEASE_BUCKET}
    options |= {"preload": "True", "export_slots": "1", "signing_conn_id": signing.CONNECTION}
    options |= {name.lower(): os.environ[name] for name in _SHORT if os.environ.get(name)}
    prefix = "AIRFLOW__ONNX_RELEASE__"
    return options | {
        name.removeprefix(prefix).lower(): value for name, value in os.environ.items() if name.startswith(prefix)
    }


def _settings(context: Context) -> str:
    home, secrets = context.layout.airflow_home, context.credentials
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_dict(
        {
            "core": {
                "executor": "LocalExecutor",
                # LocalExecutor runs queued tasks first come, first served. The pools give it four tasks of releases at
                # most: one export, one measuring task and two others. The fifth slot is free for the watch.
                "parallelism": "5",
                "default_pool_task_slot_count": "2",
                "load_examples": "False",
                # STACK_DAGS is a folder with more DAGs beside copies of these.
                "dags_folder": os.environ.get("STACK_DAGS") or str(REPO / "dags"),
                "plugins_folder": str(REPO / "plugins"),
                "dags_are_paused_at_creation": "False",
                "fernet_key": secrets.fernet_key,
                "simple_auth_manager_users": f"{secrets.airflow_username}:admin",
                "test_connection": "Enabled",
                "execution_api_server_url": f"{context.airflow_url}/execution/",
                # The default asks DNS for the full name, which takes seconds without a DNS server.
                "hostname_callable": "socket.gethostname",
            },
            # With the default of 15 connections, requests of a burst would wait for one and fail after 30 seconds.
            "database": {
                "sql_alchemy_conn": postgres.uri(context.layout, postgres.AIRFLOW),
                "sql_alchemy_pool_size": "10",
                "sql_alchemy_max_overflow": "90",
            },
            "api": {
                "base_url": context.airflow_url,
                "host": HOST,
                "port": str(context.ports.airflow),
                "workers": "1",
                "secret_key": secrets.api_secret_key,
            },
            "api_auth": {"jwt_secret": secrets.jwt_secret},
            # A task that died with the stack (Ctrl-C during a release) is retried after one minute instead of five. The
            # supervisor process sends the heartbeat, so a long computation does not delay it.
            "scheduler": {"task_instance_heartbeat_timeout": "60", "orphaned_tasks_check_interval": "30"},
            # A changed file is parsed at the next refresh. The others need no parsing.
            "dag_processor": {
                "parsing_processes": "1",
                "refresh_interval": "30",
                "min_file_process_interval": "300",
            },
            "logging": {"base_log_folder": str(home / "logs")},
            "usage_data_collection": {"enabled": "False"},
            "onnx_release": _release_options(),
        }
    )
    text = io.StringIO()
    parser.write(text)
    return text.getvalue().replace("%", "%%")
