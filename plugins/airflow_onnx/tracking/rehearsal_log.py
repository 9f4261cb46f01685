"""Report of a rehearsal in MLflow: a run in an experiment of its own, and a tag of each version."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from onnx_release.records.rehearsal import RehearsalReport, RehearsedModel
from onnx_release.scratch import scratch_folder
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook

_FOLDER = "rehearsal"


@dataclass(frozen=True)
class LoggedRehearsal:
    """Run of a rehearsal in MLflow, and the address of its page there."""

    run_id: str
    url: str


def log_rehearsal(hook: MlflowHook, experiment: str, report: RehearsalReport) -> LoggedRehearsal:
    """Write the report into a new run.

    :param experiment: the name of the experiment, which is created if it is missing.
    :raises TrackingRefused: if MLflow refuses the name of the experiment, or the account.
    """
    from onnx_release.report.rehearsal import PAGE_FILE, rehearsal_markdown, write_rehearsal

    subject = f"The experiment {experiment!r:.250}"
    with hook.mlflow_errors(subject):
        found = hook.client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else hook.client.create_experiment(experiment)
        name = f"ONNX Runtime {', '.join(report.runtimes)}"
        # The tag keeps the watch for finished training runs away.
        marks = {
            tags.WATCHED: "rehearsal",
            "mlflow.runName": name,
            "mlflow.note.content": rehearsal_markdown(report),
        }
        run_id = str(hook.client.create_run(experiment_id, tags=tags.shortened(marks)).info.run_id)
    try:
        with scratch_folder() as folder:
            hook.log_files(run_id, _FOLDER, write_rehearsal(folder, report))
        hook.log_metrics(run_id, _metrics(report))
    except BaseException:
        with hook.mlflow_errors(subject):
            hook.client.set_terminated(run_id, "FAILED")
        raise
    with hook.mlflow_errors(subject):
        hook.client.set_terminated(run_id)
    return LoggedRehearsal(run_id, hook.server.artifact_url(experiment_id, run_id, f"{_FOLDER}/{PAGE_FILE}"))


def tag_text(model: RehearsedModel) -> str:
    """Return the results of one version for its tag, with the day."""
    day = tags.now()[:10]
    if model.problem:
        return f"{day}: not rehearsed: {model.problem}"[: tags.VALUE_MAX_CHARACTERS]
    found = ", ".join(f"{one.runtime} {one.verdict}" for one in model.runtimes)
    return f"{day}: {found}"[: tags.VALUE_MAX_CHARACTERS]


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    for row in (heading, *rows):
        yield "  ".join(f"{cell:<{size}}" for cell, size in zip(row, widths, strict=True)).rstrip()


def _metrics(report: RehearsalReport) -> dict[str, float]:
    """Return the counts of each verdict and the median of the settled latency ratios, by runtime."""
    found: dict[str, float] = {}
    for runtime in report.runtimes:
        # MLflow accepts a few signs only.
        prefix = re.sub(r"[^\w.-]", "_", runtime)[:100]
        results = [one for model in report.models for one in model.runtimes if one.runtime == runtime]
        for verdict, count in Counter(one.verdict for one in results).items():
            found[f"{prefix}/{verdict.replace(' ', '_')}"] = float(count)
        if ratios := [one.latency.ratio for one in results if one.latency and one.latency.settled]:
            found[f"{prefix}/latency_ratio"] = median(ratios)
    return found
