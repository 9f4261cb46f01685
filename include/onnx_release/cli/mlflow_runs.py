"""MLflow's client as the decisions about training runs need it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from onnx_release.cli.mlflow_access import mlflow_errors
from onnx_release.training_runs.records import Experiment, ModelVersionEntry, TrainingRun
from onnx_release.training_runs.server import RunQuery, versions_of_runs

_PAGE_SIZE = 1000


class MlflowRuns:
    """A `RunServer` over MLflow's own client, for the server of the environment."""

    @cached_property
    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient()

    def experiments(self) -> list[Experiment]:
        """Return all experiments that are not deleted."""
        rows = self._pages(lambda **page: self._client.search_experiments(max_results=_PAGE_SIZE, **page))
        return [Experiment(experiment_id=row.experiment_id, name=row.name, tags=dict(row.tags)) for row in rows]

    def runs(self, query: RunQuery) -> Iterator[TrainingRun]:
        """Yield the runs."""
        if not query.experiment_ids:
            return
        arguments = {
            "experiment_ids": list(query.experiment_ids),
            "filter_string": query.filter,
            "order_by": [f"{query.order_by} {'DESC' if query.newest_first else 'ASC'}"],
            # ViewType.ALL and ViewType.ACTIVE_ONLY.
            "run_view_type": 3 if query.with_deleted else 1,
            "max_results": query.page_size,
        }
        yield from map(_training_run, self._pages(lambda **page: self._client.search_runs(**arguments, **page)))

    def run(self, run_id: str) -> TrainingRun:
        """Return one run, deleted or not."""
        with mlflow_errors(f"The training run {run_id}"):
            return _training_run(self._client.get_run(run_id))

    def versions(self, run_ids: Sequence[str]) -> Iterator[ModelVersionEntry]:
        """Yield the versions that were made from one of the runs."""
        text = versions_of_runs(run_ids)
        for row in self._pages(lambda **page: self._client.search_model_versions(text, **page)):
            yield ModelVersionEntry(
                name=row.name,
                version=int(row.version),
                created_at_ms=int(row.creation_timestamp or 0),
                run_id=row.run_id or "",
                description=row.description or "",
                tags=dict(row.tags),
            )

    def run_files(self, run_id: str, path: str = "") -> list[dict[str, Any]]:
        """Return the entries of a folder of the run's artifacts."""
        with mlflow_errors(f"The files of the training run {run_id}"):
            return [_entry(one) for one in self._client.list_artifacts(run_id, path or None)]

    def model_files(self, model_id: str, path: str = "") -> list[dict[str, Any]]:
        """Return the entries of a folder of a logged model."""
        with mlflow_errors(f"The files of the logged model {model_id}"):
            return [_entry(one) for one in self._client.list_logged_model_artifacts(model_id, path or None)]

    def logged_models(self, experiment_ids: Sequence[str], condition: str) -> list[dict[str, Any]]:
        """Return the info of each logged model of the experiments that matches and that is not deleted."""
        arguments = {"experiment_ids": list(experiment_ids), "filter_string": condition}
        return [
            _info(row) for row in self._pages(lambda **page: self._client.search_logged_models(**arguments, **page))
        ]

    def logged_model(self, model_id: str) -> dict[str, Any]:
        """Return the info of a logged model."""
        with mlflow_errors(f"The logged model {model_id}"):
            return _info(self._client.get_logged_model(model_id))

    def _pages(self, call: Callable[..., Any]) -> Iterator[Any]:
        token: str | None = None
        while True:
            with mlflow_errors("The search in MLflow"):
                page = call(page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def _training_run(run: Any) -> TrainingRun:
    models = run.outputs.model_outputs if run.outputs else []
    return TrainingRun(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        experiment_id=run.info.experiment_id,
        status=run.info.status,
        deleted=run.info.lifecycle_stage == "deleted",
        ended_at_ms=int(run.info.end_time or 0),
        tags=dict(run.data.tags),
        metrics=dict(run.data.metrics),
        model_steps={model.model_id: int(model.step or 0) for model in models},
    )


def _entry(file: Any) -> dict[str, Any]:
    return {"path": file.path, "is_dir": file.is_dir}


def _info(model: Any) -> dict[str, Any]:
    """Return a logged model in the fields of MLflow's REST API."""
    return {
        "model_id": model.model_id,
        "name": model.name,
        "status": str(getattr(model.status, "value", model.status)),
        "creation_timestamp_ms": model.creation_timestamp,
    }
