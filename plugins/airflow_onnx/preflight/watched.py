"""Checks of the experiments that the watches release: they exist, and the account may write to their runs."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.preflight.checks import Noticed, Subject, skipped, warning
from airflow_onnx.preflight.mlflow_probe import require_run_writable
from onnx_release.training_runs.queries import matches
from onnx_release.training_runs.records import Experiment
from onnx_release.training_runs.server import RunQuery

# A pattern may match thousands.
EXPERIMENTS_MAX = 10


def check_experiments(subject: Subject, rest: MlflowRest, patterns: Sequence[str]) -> None:
    """Make the checks of the watched experiments.

    :param patterns: names, ids or patterns of experiments.
    """
    found: list[Experiment] = []
    subject.check("watch.experiments", lambda: _exist(rest, patterns, found))
    subject.check("watch.rights", lambda: _writable(rest, found))


def _exist(rest: MlflowRest, patterns: Sequence[str], found: list[Experiment]) -> str:
    if not patterns:
        raise warning("none is watched", "Set experiments in watch_dag, or [onnx_release] watch_experiments.")
    every = rest.experiments()
    missing = []
    for pattern in patterns:
        matching = [one for one in every if matches(pattern, one)]
        found += [one for one in matching if one not in found]
        missing += [] if matching else [pattern]
    if missing:
        # The first training run creates it, and the watch then finds it.
        action = "Correct the name in watch_dag or [onnx_release] watch_experiments, unless it is still to be made."
        raise warning(f"MLflow has no experiment {', '.join(missing)}", action)
    shown = ", ".join(one.name for one in found[:3])
    return f"{shown} and {len(found) - 3} more" if len(found) > 3 else shown


def _writable(rest: MlflowRest, experiments: Sequence[Experiment]) -> str:
    checked = []
    for experiment in experiments[:EXPERIMENTS_MAX]:
        query = RunQuery(
            experiment_ids=[experiment.experiment_id], filter="", order_by="attributes.start_time",
            newest_first=True, page_size=1,
        )  # fmt: skip
        run = next(rest.runs(query), None)
        if run is not None:
            require_run_writable(rest, run.run_id)
            checked.append(experiment.name)
    if not checked:
        raise _no_run()
    return f"may write to the newest run of {len(checked)} of {len(experiments)} experiments"


def _no_run() -> Noticed:
    return skipped("the experiments have no run yet")
