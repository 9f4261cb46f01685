"""What Airflow's command line reads of this package: names and arguments, and no code of theirs until one is called."""

from __future__ import annotations

from airflow.cli.cli_config import (
    ARG_OUTPUT,
    ARG_VERBOSE,
    ActionCommand,
    Arg,
    CLICommand,
    GroupCommand,
    lazy_load_command,
)

from airflow_onnx import defaults
from airflow_onnx.hooks.mlflow import MlflowHook

ARG_SINCE = Arg(
    ("--from-date",),
    help="Runs that ended since this time (ISO 8601, UTC if it names no zone), by the training's clock",
    required=True,
)
ARG_UNTIL = Arg(("--to-date",), help="Runs that ended before then; default: now")
ARG_EXPERIMENT = Arg(
    ("--experiment",),
    help="Name or id of an experiment, or '*'; may be repeated. Default: the deployment's setting watch_experiments",
    action="append",
)
ARG_FILTER = Arg(("--filter",), help="More conditions, in MLflow's filter language")
ARG_MODEL = Arg(("--model-name",), help="Registered model of runs that name none", default=defaults.MODEL_NAME)
ARG_NEWEST = Arg(("--newest-first",), help="List the newest runs first", action="store_true")
ARG_AT_ONCE = Arg(
    ("--at-once",), help="Releases side by side, for the estimate", type=int, default=defaults.RELEASES_AT_ONCE
)
ARG_CONNECTION = Arg(
    ("--mlflow-conn-id",), help="Airflow connection of type mlflow", default=MlflowHook.default_conn_name
)


def get_commands() -> list[CLICommand]:
    """Return the commands below ``airflow onnx-release``."""
    plan = ActionCommand(
        name="plan",
        help="List old training runs, and what releasing a range of them would do with each; starts nothing",
        func=lazy_load_command("airflow_onnx.cli.plan.plan"),
        args=(
            ARG_SINCE,
            ARG_UNTIL,
            ARG_EXPERIMENT,
            ARG_FILTER,
            ARG_MODEL,
            ARG_NEWEST,
            ARG_AT_ONCE,
            ARG_CONNECTION,
            ARG_OUTPUT,
            ARG_VERBOSE,
        ),
    )
    return [GroupCommand(name="onnx-release", help="Release training runs as ONNX models", subcommands=(plan,))]
