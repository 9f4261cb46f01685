"""Files and metrics of a release on its training run in MLflow.

The artifacts of a run have this layout, with a further folder for each reduced precision:

- ``onnx_release/<model name>/history/<time>-<status>-<digest>.json`` and ``.html``: the report of each attempt
- ``onnx_release/<model name>/report.json``, ``report.html`` and ``summary.md``: the report of the current release
- ``onnx_release/<model name>/reproduction/``: inputs and outputs of a failed parity comparison
"""

from __future__ import annotations

import hashlib
import logging
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_release.errors import Refused, Transient
from onnx_release.limits import REPORT_PAGE
from onnx_release.records import ReleaseReport, TrainedModel
from onnx_release.records.artifact import Precision
from onnx_release.scratch import scratch_folder
from onnx_release.training_runs import tags
from onnx_release.training_runs.names import validate_model_name

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook

log = logging.getLogger(__name__)

# The folder of a release that was refused before its registered model had a name.
_UNNAMED = "unnamed"


def log_attempt(hook: MlflowHook, report: ReleaseReport) -> str:
    """Log the report in the history and return its path among the run's artifacts."""
    from onnx_release.report.html import write_page
    from onnx_release.report.release_report import write_report

    # Sorts by time. The digest keeps two attempts of the same second apart.
    digest = hashlib.sha256(f"{report.dag_run_url}\0{report.status}".encode()).hexdigest()
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{report.status}-{digest[:8]}"
    with scratch_folder() as folder:
        files = [
            file.rename(folder / f"{name}{file.suffix}")
            for file in (write_report(folder, report), write_page(folder, report))
        ]
        hook.log_files(report.trained_model.training_run_id, f"{_folder(report.trained_model)}/history", files)
    return f"{_folder(report.trained_model)}/history/{name}.html"


def log_current(hook: MlflowHook, report: ReleaseReport, *, with_metrics: bool) -> None:
    """Log the report as the current one, with or without its metrics."""
    from onnx_release.report.html import write_page
    from onnx_release.report.markdown import summary_markdown
    from onnx_release.report.metrics import release_metrics
    from onnx_release.report.release_report import write_report

    run_id, reduced = report.trained_model.training_run_id, reduced_precision(report)
    below = f"/{reduced}" if reduced else ""
    with scratch_folder() as folder:
        file, summary = write_report(folder, report), folder / "summary.md"
        summary.write_text(summary_markdown(report), encoding="utf-8")
        page = write_page(folder, report)
        hook.log_files(run_id, f"{_folder(report.trained_model)}{below}", [file, page, summary])
    if with_metrics:
        values = {
            name.replace(tags.ROOT, f"{tags.ROOT}{below}", 1): value for name, value in release_metrics(report).items()
        }
        hook.log_metrics(run_id, _outdated(hook, run_id, values, below) | values)


def log_reproduction(hook: MlflowHook, trained_model: TrainedModel, folder: Path) -> None:
    """Upload the reproduction of a parity failure, in place of an earlier one. Without a folder nothing is uploaded.

    The reproduction is not part of the verdict. If the upload fails, the task's log gets a line.
    """
    if not folder.is_dir():
        return
    files = sorted(file for file in folder.iterdir() if file.is_file())
    try:
        hook.log_files(trained_model.training_run_id, f"{_folder(trained_model)}/reproduction", files)
    except (Refused, Transient) as failure:
        log.warning("The reproduction of the failure is not recorded in MLflow: %s", failure)


def report_path(trained_model: TrainedModel, reduced: Precision | None = None) -> str:
    """Return the path of the current report page among the run's artifacts.

    :param reduced: the precision of a release of reduced precision.
    :raises ParameterRefused: if the name of the registered model is not valid.
    """
    return f"{_folder(trained_model)}{f'/{reduced}' if reduced else ''}/{REPORT_PAGE}"


def reduced_precision(report: ReleaseReport) -> Precision | None:
    """Return the precision of a release of reduced precision, else None."""
    return None if report.artifact is None or report.artifact.precision.is_exact else report.artifact.precision


def _folder(trained_model: TrainedModel) -> str:
    """Return the folder of a model's reports among the run's artifacts.

    :raises ParameterRefused: if the name is not valid.
    """
    return f"{tags.ROOT}/{validate_model_name(trained_model.model_name or _UNNAMED)}"


def _outdated(hook: MlflowHook, run_id: str, values: dict[str, float], below: str) -> dict[str, float]:
    """Return NaN for each metric that only an earlier release has: MLflow cannot delete a metric."""
    with hook.mlflow_errors(f"The training run {run_id}"):
        found = hook.client.get_run(run_id).data.metrics
    root = f"{tags.ROOT}{below}/"
    others = () if below else tuple(f"{root}{precision}/" for precision in Precision if not precision.is_exact)
    return {
        name: math.nan
        for name, value in found.items()
        if name.startswith(root) and not name.startswith(others) and name not in values and not math.isnan(value)
    }
