"""``airflow onnx-release plan``: what a backfill would do, before it is started."""

from __future__ import annotations

import argparse
import json
import os
import sys
from datetime import UTC, datetime
from typing import Any

from airflow.cli.simple_table import AirflowConsole
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

from airflow_onnx import dag_runs
from airflow_onnx.dag_runs import State
from airflow_onnx.deployment import settings
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.watch import summary
from airflow_onnx.watch.decide import Defaults
from airflow_onnx.watch.look import Look
from airflow_onnx.watch.queries import Scope, Span, moment
from onnx_release.errors import Refused, Transient


@suppress_logs_and_warning
@providers_configuration_loaded
def plan(args: argparse.Namespace) -> None:
    """Print the plan: as a table with a line of totals, or as one JSON object."""
    # As Airflow's own commands do: connections are then read from its database too, not from the environment alone.
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
    try:
        found = _planned(args)
    except (Refused, Transient, AirflowNotFoundException) as error:
        sys.exit(f"plan: {error}")
    if args.output == "json":
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    rows = [{column: run[column] for column in summary.COLUMNS} for run in found["runs"]]
    AirflowConsole().print_as(data=rows, output=args.output)
    # Not among the rows, which a program may read.
    sys.stderr.write(summary.total_line(found) + "\n")


def _planned(args: argparse.Namespace) -> dict[str, Any]:
    scope = Scope(
        experiments=tuple(args.experiment or settings.watch_experiments()),
        run_filter=args.filter if args.filter is not None else settings.watch_filter(),
    )
    if not scope.experiments:
        raise Refused("experiments", "none is named", "Give --experiment, or set [onnx_release] watch_experiments.")
    until = moment(args.to_date, "--to-date") if args.to_date else datetime.now(UTC)
    span = Span.of(moment(args.from_date, "--from-date"), until)
    with MlflowRest(MlflowHook(args.mlflow_conn_id).server) as rest:
        look = Look(rest=rest, scope=scope, defaults=Defaults(model_name=args.model_name), dag_state=_dag_state)
        planned = list(look.runs_between(span, newest_first=args.newest_first))
        return summary.as_dict(planned, lambda: look.estimate(max(1, args.at_once)), rows_max=None)


def _dag_state(dag_run_id: str) -> State:
    """Return what became of a release, from Airflow's database, which its command line may read."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    wanted = select(DagRun.state).where(DagRun.dag_id == dag_runs.RELEASE_DAG_ID, DagRun.run_id == dag_run_id)
    with create_session() as session:
        state = session.scalar(wanted)
    if state is None:
        return State.ABSENT
    return State.ALIVE if state in dag_runs.ALIVE else State(str(state))
