"""A connection of type `mlflow`, and MLflow's own client behind it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from airflow.sdk import BaseHook

from airflow_onnx.moved import Moved
from onnx_release.errors import Refused, Transient

if TYPE_CHECKING:
    from airflow.sdk import Connection
    from mlflow import MlflowClient

# MLflow's own limit for one call.
METRICS_AT_ONCE = 1000
# What MLflow's server answers when the request itself is wrong; the same request gets the same answer.
FINAL_ERROR_CODES = {
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "FEATURE_DISABLED",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_FOUND",
    "NOT_IMPLEMENTED",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowServer:
    """Where an MLflow server is and how to sign in; its `repr` shows no secret."""

    conn_id: str
    tracking_uri: str
    ui_url: str
    login: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    insecure_tls: bool = False
    ca_file: str = ""

    @classmethod
    def from_connection(cls, conn: Connection) -> MlflowServer:
        """Read a connection; raises `Refused` when its host is no http(s) address or carries credentials."""
        uri = _address(conn)
        extra = conn.extra_dejson
        return cls(
            conn_id=conn.conn_id,
            tracking_uri=uri,
            ui_url=str(extra.get("ui_url") or uri).rstrip("/"),
            login=conn.login or "",
            password=conn.password or "",
            token=str(extra.get("token") or ""),
            insecure_tls=str(extra.get("insecure_tls", "")).lower() in ("true", "1"),
            ca_file=str(extra.get("ca_file") or ""),
        )

    def authorization(self) -> str:
        """Return the value of the Authorization header, or an empty string for an open server."""
        from requests.auth import _basic_auth_str

        if self.token:
            return f"Bearer {self.token}"
        return str(_basic_auth_str(self.login, self.password)) if self.login else ""

    @property
    def verify(self) -> bool | str:
        """What a TLS client takes as `verify`: False, a CA file, or True."""
        return False if self.insecure_tls else self.ca_file or True

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """Return the address of a training run's page."""
        return f"{self.ui_url}/#/experiments/{quote(experiment_id, safe='')}/runs/{quote(run_id, safe='')}"

    def version_url(self, name: str, version: int) -> str:
        """Return the address of a model version's page."""
        return f"{self.ui_url}/#/models/{quote(name, safe='')}/versions/{version}"


def _address(conn: Connection) -> str:
    host = (conn.host or "").rstrip("/")
    if host and "://" not in host:
        scheme = conn.schema if conn.schema in ("http", "https") else "http"
        host = f"{scheme}://{host}"
    parts = urlsplit(host)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise Refused(
            f"Airflow connection '{conn.conn_id}'",
            "has no usable server address" if not parts.username else "has credentials inside its server address",
            "Set Server to an address like https://mlflow.example.org and the user and password in their own fields.",
        )
    return host if parts.port or not conn.port else f"{host}:{conn.port}"


class MlflowHook(BaseHook):
    """Speaks to the MLflow server of an Airflow connection.

    `moved` counts the bytes of the artifacts that it has sent and fetched.

    :param mlflow_conn_id: a connection of type `mlflow`; its fields are described in docs/connections.md.
    """

    conn_name_attr = "mlflow_conn_id"
    default_conn_name = "mlflow_default"
    conn_type = "mlflow"
    hook_name = "MLflow"

    def __init__(self, mlflow_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.mlflow_conn_id = mlflow_conn_id
        self.moved = Moved()

    @cached_property
    def server(self) -> MlflowServer:
        """The connection, read once."""
        return MlflowServer.from_connection(self.get_connection(self.mlflow_conn_id))

    def get_conn(self) -> MlflowClient:
        """Return `client`, under the name that Airflow's hooks share."""
        return self.client

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client for this server; also makes it the process's default, for URIs that name no server."""
        import mlflow

        from airflow_onnx.hooks import mlflow_auth

        mlflow_auth.use(self.server)
        mlflow.set_tracking_uri(self.server.tracking_uri)
        mlflow.set_registry_uri(self.server.tracking_uri)
        return mlflow.MlflowClient(self.server.tracking_uri, self.server.tracking_uri)

    def test_connection(self) -> tuple[bool, str]:
        """Answer the connection form's Test button: sign in and list one experiment."""
        try:
            with self.explained("the connection test"):
                self.client.search_experiments(max_results=1)
        except (Refused, Transient) as error:
            return False, str(error)
        return True, f"MLflow at {self.server.tracking_uri} answers."

    @contextmanager
    def explained(self, subject: str, action: str = "") -> Iterator[None]:
        """Turn what MLflow's client raises into `Refused` or `Transient`, about `subject`, with the next `action`."""
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException

        where = f"MLflow at {self.server.tracking_uri}"
        try:
            yield
        except MlflowException as error:
            text = str(error).strip().splitlines()[0][:400] if str(error).strip() else type(error).__name__
            if error.error_code in FINAL_ERROR_CODES:
                hint = action or f"Check the connection '{self.mlflow_conn_id}' and its user's rights."
                raise Refused(subject, f"{where} refuses ({error.error_code}): {text}", hint) from error
            raise Transient(subject, f"{where} did not answer as it should: {text}", OUTAGE) from error
        except RequestException as error:
            raise Transient(subject, f"{where} cannot be reached: {str(error)[:400]}", OUTAGE) from error

    def download(self, artifact_uri: str, folder: Path) -> Path:
        """Fetch a model or artifact folder into `folder`, which is created; a partial download is removed."""
        from mlflow.artifacts import download_artifacts

        folder.mkdir(parents=True)
        try:
            with self.explained(f"artifacts {artifact_uri}", "Check that the run's artifacts still exist."):
                _ = self.client
                local = download_artifacts(
                    artifact_uri=artifact_uri, dst_path=str(folder), tracking_uri=self.server.tracking_uri
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.moved["mlflow_down_bytes"] += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return Path(local)

    def model_files(self, model_uri: str) -> Iterator[tuple[str, int]]:
        """Yield path and size in bytes of each file of a logged model, ``models:/m-…``."""
        model_id, folders = model_uri.removeprefix("models:/"), [""]
        with self.explained(f"artifacts {model_uri}", "Check that the run's artifacts still exist."):
            while folders:
                for item in self.client.list_logged_model_artifacts(model_id, folders.pop() or None):
                    if item.is_dir:
                        folders.append(item.path)
                    else:
                        yield item.path, item.file_size or 0

    def log_evidence(self, run_id: str, evidence: Evidence) -> None:
        """Put a release's report, metrics and tags on its training run, whatever that run's status is."""
        with self.explained(f"run {run_id}"):
            for local in evidence.files:
                self.client.log_artifact(run_id, str(local), evidence.artifact_path)
                self.moved["mlflow_up_bytes"] += local.stat().st_size
        self._log_metrics(run_id, evidence.metrics)
        self.set_tags(run_id, evidence.tags)

    def _log_metrics(self, run_id: str, metrics: dict[str, float]) -> None:
        """Log metrics of now, in as few calls as MLflow takes: a release has some fifty of them."""
        from mlflow.entities import Metric

        now_ms = int(1000 * time.time())
        found = [Metric(name, number, now_ms, 0) for name, number in sorted(metrics.items())]
        with self.explained(f"run {run_id}"):
            for start in range(0, len(found), METRICS_AT_ONCE):
                self.client.log_batch(run_id, metrics=found[start : start + METRICS_AT_ONCE])

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags of a run, all of them in one call."""
        from mlflow.entities import RunTag

        with self.explained(f"run {run_id}"):
            self.client.log_batch(run_id, tags=[RunTag(name, text) for name, text in sorted(tags.items())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a release leaves on the training run; `files` go below the run's `artifact_path`."""

    artifact_path: str
    files: tuple[Path, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


OUTAGE = "It is tried again; if that does not help, look at the server's log and the network between."
