"""Command ``airflow onnx-release check``: everything that a release needs, in one table."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from typing import NoReturn

from airflow.cli.simple_table import AirflowConsole
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

from airflow_onnx.errors import WatchRefused
from airflow_onnx.preflight import last_result, table
from airflow_onnx.preflight.checks import State
from airflow_onnx.preflight.deployment import read_deployment
from airflow_onnx.preflight.run import DeploymentReport, Place, run_checks

log = logging.getLogger(__name__)

# As of the program `onnx-release`, and of argparse: 2 is a call that cannot be made.
PASSED, PROBLEM, NOT_MADE = 0, 1, 2


@suppress_logs_and_warning
@providers_configuration_loaded
def check(args: argparse.Namespace) -> None:
    """Print the checks. The exit status is 0 without a failed one, 1 with one, and 2 if no check could be made."""
    # As in `cli.plan`.
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
    try:
        deployment = read_deployment(args.dag_id or (), args.experiment or ())
    except WatchRefused as refusal:
        _stop(str(refusal))
    except Exception as error:  # noqa: BLE001 - a database raises anything, and its message may have its password
        _stop(f"Airflow's database cannot be read: {type(error).__name__}. Run: airflow db check.")
    report = run_checks(deployment, Place.COMMAND)
    _print(report, "json" if args.json else args.output)
    try:
        last_result.store(report)
    except Exception as error:  # noqa: BLE001 - as above; the result is printed
        sys.stderr.write(f"check: the result is not stored for the page: {type(error).__name__}\n")
    sys.exit(PROBLEM if report.state is State.FAILED else PASSED)


def _stop(text: str) -> NoReturn:
    sys.stderr.write(f"check: {text}\n")
    sys.exit(NOT_MADE)


def _print(report: DeploymentReport, output: str) -> None:
    if output == "json":
        sys.stdout.write(json.dumps(report.to_dict(), indent=2) + "\n")
    elif output == "table":
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        text = "\n".join(table.lines(report, shutil.get_terminal_size((120, 40)).columns, color=color))
        # A terminal without Unicode must not stop the command.
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    else:
        # Its output is for programs.
        AirflowConsole().print_as(data=table.rows(report), output=output)
