"""Entries of MLflow about one version: the version, its registered model, its training run and the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx_release.cli import mlflow_access
from onnx_release.errors import CommandRefused, Refused
from onnx_release.limits import REPORT_FILE
from onnx_release.records import AliasMove, FileDigest, ReleaseReport
from onnx_release.records.provenance import TrainingFacts
from onnx_release.scratch import scratch_folder
from onnx_release.training_runs import tags
from onnx_release.training_runs.alias_moves import moves_in
from onnx_release.training_runs.facts import training_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Entries of MLflow about one version, as MLflow's client returns them. Their texts are not trusted."""

    version: Any
    model: Any
    run: Any | None
    report: ReleaseReport | None

    @property
    def facts(self) -> TrainingFacts:
        """The facts that the training run logged."""
        return training_facts(_rest_form(self.run)) if self.run else TrainingFacts()

    @property
    def files(self) -> tuple[FileDigest, ...]:
        """The files with their digests, from the report."""
        return self.report.artifact.files if self.report and self.report.artifact else ()

    @property
    def moves(self) -> tuple[AliasMove, ...]:
        """The moves to and from this version, the newest last."""
        number = int(self.version.version)
        return tuple(one for one in moves_in(self.model.tags) if number in (one.to_version, one.from_version))

    @property
    def aliases(self) -> list[str]:
        """The aliases that the version has."""
        number = int(self.version.version)
        return sorted(alias for alias, holder in self.model.aliases.items() if int(holder) == number)


def read_trace(uri: str) -> Trace:
    """Return the entries about ``models:/name/3`` or ``models:/name@alias``.

    Raises:
        CommandRefused: It does not exist.
        Transient: MLflow does not answer.
    """
    entry = mlflow_access.find_version(uri)
    if entry is None:
        raise CommandRefused(
            f"The model {uri!r:.200}",
            "is not a registered version",
            "Give models:/NAME/VERSION or models:/NAME@ALIAS.",
            code="model_not_found",
        )
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient()
    with mlflow_access.mlflow_errors(f"The version {uri:.200}"):
        version = client.get_model_version(entry.name, str(entry.version))
        model = client.get_registered_model(entry.name)
        run_id = version.run_id or version.tags.get(tags.VERSION_TRAINING_RUN)
        try:
            training_run = client.get_run(run_id) if run_id else None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            training_run = None  # Its record was purged; the version remains.
    return Trace(version=version, model=model, run=training_run, report=_report(training_run, version))


def _report(training_run: Any, version: Any) -> ReleaseReport | None:
    """Return the report of the release that made the version, if the training run still has it."""
    if training_run is None or training_run.info.lifecycle_stage == "deleted":
        return None
    precision = version.tags.get(tags.VERSION_PRECISION, "exact")
    below = "" if precision == "exact" else f"/{precision}"
    place = f"runs:/{training_run.info.run_id}/{tags.ROOT}/{version.name}{below}/{REPORT_FILE}"
    from onnx_release.report.release_report import read_report

    with scratch_folder() as scratch:
        try:
            report = read_report(mlflow_access.download(place, scratch / "report"))
        except Refused:
            return None
    is_of_version = report.artifact and report.artifact.sha256 == version.tags.get(tags.VERSION_SHA256)
    return report if is_of_version else None


def _rest_form(run: Any) -> dict[str, Any]:
    """Return a run of MLflow's client in the fields of MLflow's REST API."""
    rows = {
        kind: [{"key": key, "value": value} for key, value in getattr(run.data, kind).items()]
        for kind in ("params", "metrics", "tags")
    }
    inputs = run.inputs.dataset_inputs if run.inputs else []
    datasets = [
        {"dataset": {name: getattr(one.dataset, name) for name in ("name", "digest", "source")}} for one in inputs
    ]
    return {"data": rows, "inputs": {"dataset_inputs": datasets}}
