"""Commands of this package in Airflow's command line: names and arguments. Their code is imported by a call."""

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

PLAN_ARGUMENTS = (
    Arg(
        ("--from-date",),
        help="Runs that ended at or after this time (ISO 8601, in UTC without a time zone), by the training's clock",
        required=True,
    ),
    Arg(("--to-date",), help="Runs that ended before this time. Default: now"),
    Arg(("--dag-id",), help="The watch whose routes count. Needed if Airflow has several"),
    Arg(
        ("--experiment",),
        help="Name, id or pattern of experiments. May be repeated. Default: the experiments of the watch",
        action="append",
    ),
    Arg(("--filter",), help="More conditions, in MLflow's filter language. Default: the filter of the watch"),
    Arg(("--wide",), help="A line for each run, of up to 160 characters", action="store_true"),
    Arg(("--newest-first",), help="List the newest runs first", action="store_true"),
    Arg(
        ("--at-once",),
        help="Releases at the same time, for the estimate",
        type=int,
        default=defaults.RELEASES_AT_ONCE,
    ),
    Arg(("--mlflow-conn-id",), help="Airflow connection of type mlflow. Default: the connection of the watch"),
    ARG_OUTPUT,
    ARG_VERBOSE,
)

CHECK_ARGUMENTS = (
    Arg(("--dag-id",), help="A DAG of releases or a watch. May be repeated. Default: all", action="append"),
    Arg(
        ("--experiment",),
        help="Name, id or pattern of an experiment besides those of the watches. May be repeated",
        action="append",
    ),
    Arg(("--json",), help="The same as --output json", action="store_true"),
    ARG_OUTPUT,
    ARG_VERBOSE,
)

PLACE_ARGUMENTS = (
    Arg(("--bucket",), help="Bucket of the releases. Default: the option bucket"),
    Arg(("--prefix",), help="Folder in the bucket; nothing outside of it is touched. Default: the option prefix"),
    Arg(("--mlflow-conn-id",), help="Airflow connection of type mlflow", default=defaults.MLFLOW_CONN_ID),
    Arg(("--s3-conn-id",), help="Airflow connection of type s3store or aws", default=defaults.S3_CONN_ID),
    Arg(("--json",), help="The same as --output json", action="store_true"),
    ARG_OUTPUT,
    ARG_VERBOSE,
)

GC_ARGUMENTS = (
    Arg(("--delete",), help="Remove the leftovers. Without it nothing is changed", action="store_true"),
    Arg(
        ("--grace-hours",),
        help="Nothing that is younger is a leftover, by the clock of the store",
        type=float,
        default=defaults.GRACE_H,
    ),
    *PLACE_ARGUMENTS,
)

RETIRE_ARGUMENTS = (
    Arg(
        ("--delete",), help="Delete the versions and their objects. Without it nothing is changed", action="store_true"
    ),
    Arg(("--model",), help="Name or pattern of models. May be repeated. Default: all models", action="append"),
    Arg(
        ("--min-age-days",),
        help="Versions that were made, or left by an alias, later than this stay, by MLflow's clock",
        type=float,
        default=defaults.RETIRE_AGE_DAYS,
    ),
    Arg(
        ("--made-before",), help="Only versions that were made before this time (ISO 8601, in UTC without a time zone)"
    ),
    Arg(
        ("--keep-newest",),
        help="The newest versions of each model that stay",
        type=int,
        default=defaults.RETIRE_KEEP_NEWEST,
    ),
    Arg(
        ("--keep-previous",),
        help="The versions that stay for a roll back of each alias: those that it was at before",
        type=int,
        default=defaults.RETIRE_KEEP_PREVIOUS,
    ),
    Arg(("--reason",), help="One sentence for the record on the training runs. Default: the rules"),
    *PLACE_ARGUMENTS,
)


def get_commands() -> list[CLICommand]:
    """Return the commands below ``airflow onnx-release``."""
    plan = ActionCommand(
        name="plan",
        help="List the training runs of a range of time, and the decision about each. Nothing is started",
        func=lazy_load_command("airflow_onnx.cli.plan.plan"),
        args=PLAN_ARGUMENTS,
    )
    check = ActionCommand(
        name="check",
        help="Check everything that a release needs, and list the problems with the next step for each",
        description=(
            "Check connections, rights, bucket, pool, packages of this host, DAGs, components and clocks. Objects, a "
            "run and a registered model are made under marked names and deleted again. Exit status: 0 without a "
            "problem, 1 with one, 2 if no check could be made"
        ),
        func=lazy_load_command("airflow_onnx.cli.check.check"),
        args=CHECK_ARGUMENTS,
    )
    gc = ActionCommand(
        name="gc",
        help="List files and records that a crash left behind, and remove them with --delete",
        description=(
            "Find objects that no version and no training run names, uploads in parts, work folders, temporary folders "
            "of this host and versions that never became ready. Exit status: 0 if nothing is left, 1 if leftovers are "
            "there, 2 if the search could not be made; nothing is removed then"
        ),
        func=lazy_load_command("airflow_onnx.cli.gc.gc"),
        args=GC_ARGUMENTS,
    )
    retire = ActionCommand(
        name="retire",
        help="List old versions that no alias has, and delete them with their objects by --delete",
        description=(
            "Find versions that no alias has, that are old enough, and that are neither one of the newest of their "
            "model nor needed for a roll back. Exit status: 0 if none is left to retire, 1 if some are there, 2 if the "
            "search could not be made; nothing is deleted then"
        ),
        func=lazy_load_command("airflow_onnx.cli.retire.retire"),
        args=RETIRE_ARGUMENTS,
    )
    commands = (plan, check, gc, retire)
    return [GroupCommand(name="onnx-release", help="Release training runs as ONNX models", subcommands=commands)]
