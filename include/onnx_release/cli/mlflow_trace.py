"""Entries of MLflow's client about one version, in the form of MLflow's REST API."""

from __future__ import annotations

from typing import Any

from onnx_release.cli import mlflow_access
from onnx_release.errors import CommandRefused, Refused
from onnx_release.records import ReleaseReport
from onnx_release.records.provenance import TrainingFacts
from onnx_release.scratch import scratch_folder
from onnx_release.training_runs.facts import training_facts
from onnx_release.training_runs.records import ModelVersionEntry, RegisteredModel
from onnx_release.training_runs.trace import Trace, read_trace


def trace_of(uri: str) -> Trace:
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
    with mlflow_access.mlflow_errors(f"The version {uri:.200}"):
        return read_trace(ClientServer(), entry.name, entry.version)


def training_run_facts(run_id: str) -> TrainingFacts:
    """Return the facts of a training run. A run whose record was purged has none.

    Raises:
        CommandRefused: MLflow refuses to return it.
        Transient: MLflow does not answer.
    """
    with mlflow_access.mlflow_errors(f"The training run {run_id:.200}"):
        run = ClientServer().run_fields(run_id)
    return training_facts(run) if run else TrainingFacts()


class ClientServer:
    """MLflow's client, with the server of the environment."""

    def __init__(self) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()

    def registered_model(self, name: str) -> RegisteredModel:
        """Return a registered model."""
        model = self._client.get_registered_model(name)
        aliases = {alias: int(version) for alias, version in model.aliases.items()}
        return RegisteredModel(name=model.name, aliases=aliases, tags=dict(model.tags))

    def model_version(self, name: str, version: int) -> ModelVersionEntry:
        """Return a version of a registered model."""
        found = self._client.get_model_version(name, str(version))
        return ModelVersionEntry(
            name=found.name,
            version=int(found.version),
            created_at_ms=int(found.creation_timestamp or 0),
            run_id=found.run_id or "",
            description=found.description or "",
            tags=dict(found.tags),
            source=found.source or "",
        )

    def run_fields(self, run_id: str) -> dict[str, Any] | None:
        """Return a run, None if its record was purged."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return _rest_form(run)

    def report(self, run_id: str, path: str) -> ReleaseReport | None:
        """Return a report among the artifacts of a run."""
        from onnx_release.report.release_report import read_report

        with scratch_folder() as scratch:
            try:
                return read_report(mlflow_access.download(f"runs:/{run_id}/{path}", scratch / "report"))
            except Refused:
                return None


def _rest_form(run: Any) -> dict[str, Any]:
    rows = {
        kind: [{"key": key, "value": value} for key, value in getattr(run.data, kind).items()]
        for kind in ("params", "metrics", "tags")
    }
    inputs = run.inputs.dataset_inputs if run.inputs else []
    datasets = [
        {"dataset": {name: getattr(one.dataset, name) for name in ("name", "digest", "source")}} for one in inputs
    ]
    names = ("run_id", "run_name", "experiment_id", "user_id", "end_time", "lifecycle_stage")
    info = {name: getattr(run.info, name) for name in names}
    return {"info": info, "data": rows, "inputs": {"dataset_inputs": datasets}}
