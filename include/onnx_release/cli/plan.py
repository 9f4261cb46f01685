"""Command ``onnx-release plan``: the decision about each training run of a range of time. Nothing is started.

The state of a release is that in the tags of its training run. `airflow onnx-release plan` also reads Airflow's DAG
runs and the routes of its watch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from onnx_release.cli import console, mlflow_access
from onnx_release.cli.mlflow_runs import MlflowRuns
from onnx_release.cli.outcome import ExitCode, Outcome
from onnx_release.errors import CommandRefused
from onnx_release.training_runs import summary
from onnx_release.training_runs.decide import Decider
from onnx_release.training_runs.estimate import estimate
from onnx_release.training_runs.queries import Scope, TimeSpan, parse_time
from onnx_release.training_runs.routes import Route, Routes

NAME = "plan"
HELP = "List the training runs of a range of time, and the decision about each. Nothing is started."
_STYLES = {"release": "good", "refuse": "bad", "skip": "dim", "wait": "note"}


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    arguments.add_argument(
        "--experiment",
        action="append",
        required=True,
        metavar="NAME",
        help="name, id or pattern of experiments, such as 'radio-*'; may be repeated",
    )
    arguments.add_argument(
        "--from-date", default="1970-01-01", metavar="TIME", help="runs that ended at or after this time (ISO 8601)"
    )
    arguments.add_argument("--to-date", metavar="TIME", help="runs that ended before this time; default: now")
    arguments.add_argument("--filter", default="", help="more conditions, in MLflow's filter language")
    arguments.add_argument("--model-name", default="", help="the registered model, for runs without the tag")
    arguments.add_argument("--allow-pickle", action="store_true", help="plan as a deployment that allows pickles")
    arguments.add_argument("--wide", action="store_true", help="a line for each run")
    arguments.add_argument("--newest-first", action="store_true", help="list the newest runs first")
    arguments.add_argument("--at-once", type=int, default=1, help="releases at the same time, for the estimate")


def run(arguments: argparse.Namespace) -> Outcome:
    """Decide about each run."""
    mlflow_access.require_server()
    until = parse_time(arguments.to_date, "--to-date") if arguments.to_date else datetime.now(UTC)
    span = TimeSpan.between(parse_time(arguments.from_date, "--from-date"), until)
    given = {"model_name": arguments.model_name} if arguments.model_name else {}
    decider = Decider(
        rest=MlflowRuns(),
        scope=Scope(experiments=tuple(arguments.experiment), run_filter=arguments.filter),
        routes=Routes((Route(experiment="*", dag_id="", params=given),)),
        pickles_allowed=arguments.allow_pickle,
    )
    if not decider.experiments:
        raise CommandRefused(
            f"The experiment {', '.join(arguments.experiment)!r:.200}",
            "does not exist in MLflow",
            "Give a name, an id or a pattern of existing ones.",
            code="wrong_argument",
        )
    decisions = list(decider.runs_between(span, newest_first=arguments.newest_first))
    found = summary.to_dict(
        decisions,
        lambda: estimate(decider.rest, list(decider.experiments), max(1, arguments.at_once)),
        rows_max=None,
    )
    return Outcome(code=ExitCode.PASSED, document=found, lines=lambda: _lines(found, is_wide=arguments.wide))


def _lines(found: dict[str, Any], *, is_wide: bool) -> Iterator[str]:
    yield from console.paragraph(summary.total_line(found))
    if not found["runs"]:
        return
    yield ""
    if is_wide:
        rows = [[run["action"], *(run[key] for key in ("reason_code", "run_name", "ended_at", "training_run_id"))]
                for run in map(_shown, found["runs"])]  # fmt: skip
        yield from console.table(("action", "reason", "run", "ended (UTC)", "training run id"), rows, _STYLES)
    else:
        yield from summary.group_lines(found)
        yield from ("", "One line for each run: --wide. Whole reasons: --json.")


def _shown(run: dict[str, Any]) -> dict[str, Any]:
    return summary.row(run) | {"ended_at": run["ended_at"].replace("T", " ").partition("+")[0][:16]}
