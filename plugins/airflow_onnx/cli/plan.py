"""Command ``airflow onnx-release plan``: decisions about a range of old training runs, without a start."""

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

from airflow_onnx.cli import dag_run_states
from airflow_onnx.dag_roles import DagRole, dag_ids
from airflow_onnx.errors import WatchRefused
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.watch.decide import Decider
from airflow_onnx.watch.routes import read_routes
from onnx_release.errors import Refused, Transient
from onnx_release.training_runs import summary
from onnx_release.training_runs.estimate import estimate
from onnx_release.training_runs.queries import Scope, TimeSpan, parse_time


@suppress_logs_and_warning
@providers_configuration_loaded
def plan(args: argparse.Namespace) -> None:
    """Print a summary by reason, or with ``--wide`` a line for each run. Other formats have all runs."""
    # Private to Airflow 3.3, whose own commands set it too: Airflow then also reads connections from its database.
    # Remove when Airflow sets it for the commands of providers.
    os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
    try:
        found = make_plan(args)
    except (Refused, Transient, AirflowNotFoundException) as error:
        sys.exit(f"plan: {error}")
    if args.output == "json":
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    elif args.output == "table":
        lines = summary.table_lines(found) if args.wide else summary.group_lines(found)
        hint = [] if args.wide or not lines else ["", "One line for each run: --wide. Whole reasons: --output json."]
        _print([summary.total_line(found), "", *lines, *hint])
    else:
        # Its output is for programs.
        AirflowConsole().print_as(data=[summary.row(run) for run in found["runs"]], output=args.output)
        sys.stderr.write(summary.total_line(found) + "\n")


def _print(lines: list[str]) -> None:
    # A terminal without Unicode must not stop the command.
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write("\n".join(lines).encode(encoding, "replace").decode(encoding) + "\n")


def make_plan(args: argparse.Namespace) -> dict[str, Any]:
    """Return the summary of the decisions, with all runs of the range.

    :raises WatchRefused: if an argument cannot be used.
    """
    watch = _watch_params(args.dag_id)
    routes = read_routes(watch["routes"])
    scope = Scope(
        experiments=tuple(args.experiment or watch["experiments"] or ()),
        run_filter=args.filter if args.filter is not None else watch["run_filter"] or "",
        routed=tuple(routes.patterns),
    )
    if not scope.experiments:
        raise WatchRefused(
            "The list of experiments",
            "is empty",
            "Give --experiment, or set [onnx_release] watch_experiments.",
            code="no_experiment",
        )
    until = parse_time(args.to_date, "--to-date") if args.to_date else datetime.now(UTC)
    span = TimeSpan.between(parse_time(args.from_date, "--from-date"), until)
    with MlflowRest(MlflowHook(args.mlflow_conn_id or watch["mlflow_conn_id"]).server) as rest:
        decider = Decider(
            rest=rest, scope=scope, routes=routes, dag_state=dag_run_states.state, absent=dag_run_states.absent
        )  # fmt: skip
        decisions = list(decider.runs_between(span, newest_first=args.newest_first))
        return summary.to_dict(
            decisions, lambda: estimate(rest, list(decider.experiments), max(1, args.at_once)), rows_max=None
        )


def _watch_params(dag_id: str | None) -> dict[str, Any]:
    """Return the parameters of a watch in Airflow's database.

    :param dag_id: the watch, None for the only one.
    :raises WatchRefused: if there is none, or more than one.
    """
    from airflow.models.serialized_dag import SerializedDagModel

    found = dag_ids(DagRole.WATCH)
    if dag_id is None and len(found) == 1:
        dag_id = found[0]
    if dag_id not in found:
        listed = ", ".join(found) or "none"
        problem = f"does not exist; Airflow has {listed}" if dag_id else f"is not given; Airflow has {listed}"
        raise WatchRefused("The DAG of the watch", problem, "Give one by --dag-id.", code="no_watch")
    dag = SerializedDagModel.get_dag(dag_id)
    return dict(dag.params.dump()) if dag else {}
