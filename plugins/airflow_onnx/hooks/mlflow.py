"""Airflow hook for MLflow's client, with the connection type `mlflow`."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow.sdk import BaseHook

from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.hooks.mlflow_server import MlflowServer
from onnx_release.errors import Refused, Transient

if TYPE_CHECKING:
    from mlflow import MlflowClient


class MlflowHook(BaseHook):
    """MLflow's client for the server of an Airflow connection.

    :param mlflow_conn_id: a connection of type `mlflow`. Its fields are described in docs/connections.md.
    """

    conn_name_attr = "mlflow_conn_id"
    default_conn_name = "mlflow_default"
    conn_type = "mlflow"
    hook_name = "MLflow"

    def __init__(self, mlflow_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.mlflow_conn_id = mlflow_conn_id

    @cached_property
    def server(self) -> MlflowServer:
        """The connection, read once."""
        return MlflowServer.from_connection(self.get_connection(self.mlflow_conn_id))

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client for this server, signed in with the connection's credentials."""
        from mlflow import MlflowClient

        from airflow_onnx.hooks import mlflow_auth

        _log_into_airflows_log()
        mlflow_auth.use(self.server)
        return MlflowClient(self.server.tracking_uri, self.server.tracking_uri)

    def get_conn(self) -> MlflowClient:
        """Return `client`, by the name that Airflow's hooks share."""
        return self.client

    def activate(self) -> None:
        """Make this server the default of MLflow in this process, for its functions and for URIs without a server."""
        import mlflow

        from airflow_onnx.hooks import mlflow_auth

        mlflow_auth.use(self.server)
        mlflow.set_tracking_uri(self.server.tracking_uri)
        mlflow.set_registry_uri(self.server.tracking_uri)

    def test_connection(self) -> tuple[bool, str]:
        """Sign in and list the experiments, for the Test button of the connection form.

        The button is served by the API server, which does not import MLflow.
        """
        try:
            with MlflowRest(self.server) as rest:
                rest.experiments()
        except (Refused, Transient) as error:
            return False, str(error)
        return True, f"MLflow at {self.server.tracking_uri} answers."

    @contextmanager
    def mlflow_errors(self, subject: str, action: str | None = None) -> Iterator[None]:
        """Turn errors of MLflow's client into `TrackingRefused` or `Transient`.

        :param subject: the object of the calls, for example ``The run 3f2a``.
        :param action: the next step for a person if MLflow refuses.
        """
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException

        try:
            yield
        except MlflowException as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise self.server.error_response(subject, error.error_code, lines[0], action) from error
        except RequestException as error:
            raise self.server.unreachable(subject, error) from error

    def download(self, artifact_uri: str, folder: Path) -> Path:
        """Download a model, an artifact folder or a file and return its local path.

        :param artifact_uri: ``runs:/…``, ``models:/…`` or ``mlflow-artifacts:/…``.
        :param folder: created here, and removed again after a partial download.
        """
        from mlflow.artifacts import download_artifacts

        self.activate()
        with self.mlflow_errors(f"The artifact {artifact_uri}", _ARTIFACT_ACTION):
            self.require_served(artifact_uri)
        folder.mkdir(parents=True)
        try:
            with self.mlflow_errors(f"The artifact {artifact_uri}", _ARTIFACT_ACTION):
                local = download_artifacts(
                    artifact_uri=artifact_uri, dst_path=str(folder), tracking_uri=self.server.tracking_uri
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Path(local)

    def model_files(self, model_uri: str) -> Iterator[tuple[str, int]]:
        """Yield path and size in bytes of each file of a logged model.

        :param model_uri: ``models:/m-…``.
        """
        model_id, folders = model_uri.removeprefix("models:/"), [""]
        with self.mlflow_errors(f"The model {model_uri}", _ARTIFACT_ACTION):
            self.require_served(model_uri)
            while folders:
                for item in self.client.list_logged_model_artifacts(model_id, folders.pop() or None):
                    if item.is_dir:
                        folders.append(item.path)
                    else:
                        yield item.path, item.file_size or 0

    def log_files(self, run_id: str, artifact_path: str, files: Sequence[Path]) -> None:
        """Upload files into a folder of the run's artifacts.

        :param run_id: the run's id.
        :param artifact_path: the folder below the run's artifacts.
        :param files: local files. Each keeps its name.
        """
        with self.mlflow_errors(f"The run {run_id}"):
            self.require_served(f"runs:/{run_id}/{artifact_path}")
            for file in files:
                self.client.log_artifact(run_id, str(file), artifact_path)

    def log_metrics(self, run_id: str, metrics: dict[str, float]) -> None:
        """Log metrics of step 0 at the current time. MLflow's client splits large batches.

        :param run_id: the run's id.
        :param metrics: value by name.
        """
        from mlflow.entities import Metric

        now_ms = int(1000 * time.time())
        rows = [Metric(name, value, now_ms, 0) for name, value in sorted(metrics.items())]
        with self.mlflow_errors(f"The run {run_id}"):
            self.client.log_batch(run_id, metrics=rows)

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags of a run in one call.

        :param run_id: the run's id.
        :param tags: text by name. A tag with an empty text is deleted.
        """
        from mlflow.entities import RunTag
        from mlflow.exceptions import MlflowException

        with self.mlflow_errors(f"The run {run_id}"):
            rows = [RunTag(name, text) for name, text in sorted(tags.items()) if text]
            self.client.log_batch(run_id, tags=rows)
            for name in (name for name, text in tags.items() if not text):
                try:
                    self.client.delete_tag(run_id, name)
                except MlflowException as error:
                    # The run may be without it.
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise

    def require_served(self, artifact_uri: str) -> None:
        """Raise for artifacts that MLflow's client would read or write itself, with this worker's own credentials.

        :param artifact_uri: as in `download`.
        :raises TrackingRefused: for a store that the tracking server does not serve.
        """
        location = self.location(artifact_uri)
        parts, server = urlsplit(location), urlsplit(self.server.tracking_uri)
        if parts.scheme == "mlflow-artifacts" and parts.netloc in ("", server.netloc):
            return
        if location.startswith(f"{self.server.tracking_uri}/api/2.0/mlflow-artifacts/"):
            return
        raise TrackingRefused(
            f"The artifact {artifact_uri}",
            f"is at {location:.300}, which MLflow at {self.server.tracking_uri} does not serve. The worker would need "
            "credentials of its own",
            "Start the server with --serve-artifacts, and give the experiment a location mlflow-artifacts:/….",
            code="artifacts_not_served",
        )

    def location(self, uri: str, depth: int = 0) -> str:
        """Return the place of an artifact, or of the run or model around it, as MLflow's client finds it.

        :param uri: ``runs:/…``, ``models:/…``, or another address, which is returned unchanged.
        :param depth: the number of sources that were followed to this URI.
        """
        if found := re.match(r"runs:/([^/]+)", uri):
            return str(self.client.get_run(found[1]).info.artifact_uri)
        if depth < _SOURCES_MAX and (found := re.fullmatch(r"models:/([^/@]+)/(\d+)(?:/.*)?", uri)):
            # The source of a version may be another URI of this kind.
            return self.location(str(self.client.get_model_version_download_uri(found[1], found[2])), depth + 1)
        if found := re.match(r"models:/(m-[0-9a-zA-Z]+)", uri):
            return str(self.client.get_logged_model(found[1]).artifact_location)
        return uri


def _log_into_airflows_log() -> None:
    """Send MLflow's warnings to the task's log. MLflow writes to standard error, which Airflow shows as errors."""
    for name in ("mlflow", "alembic"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


_SOURCES_MAX = 5
_ARTIFACT_ACTION = "Check that the run's artifacts still exist."
