"""Checks of an MLflow server over REST, with an experiment, a run, a file and a registered model of its own.

MLflow deletes a registered model and a file for ever, and hides a deleted experiment with its runs. Each check restores
the same hidden experiment, so a server has at most one for each account.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote, urlsplit

from packaging.version import InvalidVersion, Version

from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.hooks.mlflow_server import MlflowServer
from airflow_onnx.preflight.checks import Subject, failure, warning
from airflow_onnx.preflight.clock import MLFLOW_MAX_S, MLFLOW_WARN_S, Clock, parse_date
from onnx_release.errors import Refused, Transient

MARK = "onnx-release-check"
# The oldest server with which a release was tested.
SERVER_MIN = "3.12.0"
CALL_TIMEOUT_S = 10.0
_TAG = "onnx_release.checked_at"
# Another check may restore and delete the same experiment at the same time.
_DELETED_MEANWHILE = ("not_found", "mlflow_refused")
_TEXT = "This file belongs to a check of the ONNX release. It may be deleted."


@dataclass(frozen=True)
class MlflowProbe:
    """The checks of the server of one connection.

    :param conn_id: the connection.
    """

    conn_id: str

    @cached_property
    def hook(self) -> MlflowHook:
        """The hook of the connection."""
        return MlflowHook(self.conn_id)

    @cached_property
    def server(self) -> MlflowServer:
        """The server of the connection."""
        return self.hook.server

    @cached_property
    def rest(self) -> MlflowRest:
        """The client, with a time limit for each call."""
        return MlflowRest(self.server, CALL_TIMEOUT_S)

    def run(self, subject: Subject) -> None:
        """Make all checks."""
        subject.check("mlflow.connection", self.connection)
        subject.check("mlflow.version", self.version, needs=["mlflow.connection"])
        subject.check("mlflow.read", self.read, needs=["mlflow.connection"])
        subject.check("mlflow.registry", self.registry, needs=["mlflow.read"])
        if subject.passed("mlflow.read"):
            Scratch(self.rest, self.server).run(subject)
        subject.check("clock.mlflow", lambda: self.clock().text(MLFLOW_WARN_S, MLFLOW_MAX_S), needs=["mlflow.version"])

    def connection(self) -> str:
        """Return the address, and the kind of sign-in."""
        kind = self.hook.get_connection(self.conn_id).conn_type
        sign_in = "a token" if self.server.token else "user and password" if self.server.login else "no sign-in"
        found = f"{self.server.tracking_uri}, {sign_in}"
        if kind != MlflowHook.conn_type:
            action = "Change its type to mlflow. Fields of another type may be lost when the form is saved."
            raise warning(f"{found}, of the type {kind!r:.60}", action)
        return found

    def version(self) -> str:
        """Compare the server's version with the oldest tested one."""
        answer = self.rest.raw("GET", "version")
        found = answer.text.strip()
        try:
            is_tested = Version(found) >= Version(SERVER_MIN)
        except InvalidVersion:
            action = "Check the address: it may lead to another server than MLflow."
            raise warning(f"the server names no version: {found!r:.60}", action) from None
        if not is_tested:
            raise warning(f"{found}, older than {SERVER_MIN}, the oldest tested one", "Upgrade MLflow's server.")
        return found

    def read(self) -> str:
        """Search the experiments."""
        self.rest.call("GET", "experiments/search", {"max_results": 1})
        return "experiments can be searched"

    def clock(self) -> Clock:
        """Compare the clock of this host with the server's."""
        began = time.time()
        return parse_date(self.rest.raw("GET", "version").headers.get("date", ""), began)

    def registry(self) -> str:
        """Create a registered model and delete it."""
        name = f"{MARK}-{uuid.uuid4().hex[:12]}"
        try:
            self.rest.call("POST", "registered-models/create", {"name": name})
        except Transient:
            # It may exist: the answer may be lost, and not the request.
            with suppress(Refused, Transient):
                self.rest.call("DELETE", "registered-models/delete", {"name": name})
            raise
        try:
            self.rest.call("DELETE", "registered-models/delete", {"name": name})
        except TrackingRefused as refusal:
            raise failure(
                f"the registered model {name} was created and cannot be deleted: {refusal.problem}", refusal.action
            ) from refusal
        return "a registered model was created and deleted"


class Scratch:
    """An experiment with one run, which a check restores, writes to and deletes again."""

    def __init__(self, rest: MlflowRest, server: MlflowServer) -> None:
        self._rest = rest
        # Accounts have no rights on each other's experiments.
        self.name = f"{MARK}-{server.login}" if server.login else MARK
        self._server = server
        self._experiment_id = ""
        self._artifacts = ""

    def run(self, subject: Subject) -> None:
        """Make the checks that write."""
        try:
            subject.check("mlflow.runs", self.runs, needs=["mlflow.read"])
            subject.check("mlflow.artifacts", self.artifacts, needs=["mlflow.runs"])
        finally:
            if self._experiment_id:
                subject.check("mlflow.clean", self.clean)

    def runs(self) -> str:
        """Restore or create the experiment and its run, and set a tag of the run."""
        try:
            return self._write()
        except TrackingRefused as refusal:
            if refusal.code not in _DELETED_MEANWHILE:
                raise
        return self._write()

    def _write(self) -> str:
        self._experiment_id = self._experiment()
        query = {"experiment_ids": [self._experiment_id], "max_results": 1}
        rows = self._rest.call("POST", "runs/search", query).get("runs") or []
        if rows:
            info = rows[0]["info"]
        else:
            new = {"experiment_id": self._experiment_id, "run_name": MARK, "start_time": int(time.time() * 1000)}
            info = self._rest.call("POST", "runs/create", new)["run"]["info"]
        self._artifacts = str(info["artifact_uri"])
        self._rest.set_tags(info["run_id"], {_TAG: str(int(time.time()))})
        return "an experiment, a run and a tag were written"

    def artifacts(self) -> str:
        """Put a file through MLflow's artifact service, read it, and delete it if the store can."""
        path = urlsplit(self._artifacts)
        own = path.netloc in ("", urlsplit(self._server.tracking_uri).netloc)
        if path.scheme != "mlflow-artifacts" or not own:
            problem = f"new experiments have their artifacts at {path.scheme}://, which MLflow does not serve"
            raise failure(
                f"{problem}. The worker would need credentials of its own",
                "Start the server with --serve-artifacts, and without a --default-artifact-root of another store.",
            )
        # Always the same file. Some stores let MLflow delete nothing, and a release deletes nothing in MLflow.
        address = f"api/2.0/mlflow-artifacts/artifacts/{quote(path.path.strip('/'))}/{MARK}.txt"
        content = f"{_TEXT} {uuid.uuid4().hex}\n".encode()
        self._rest.raw("PUT", address, content)
        if self._rest.raw("GET", address).content != content:
            raise failure("the file reads back with other bytes", "Check MLflow's store, and proxies before it.")
        try:
            self._rest.raw("DELETE", address)
        except (Refused, Transient):
            return f"a file was put and read; its store deletes none, so {MARK}.txt stays in the deleted experiment"
        return "a file was put, read and deleted"

    def clean(self) -> str:
        """Delete the experiment with its run."""
        try:
            self._rest.call("POST", "experiments/delete", {"experiment_id": self._experiment_id})
        except TrackingRefused as refusal:
            if refusal.code not in _DELETED_MEANWHILE:
                raise
        return f"the experiment {self.name} is deleted again"

    def _experiment(self) -> str:
        try:
            query = {"experiment_name": self.name}
            found = self._rest.call("GET", "experiments/get-by-name", query)["experiment"]
        except TrackingRefused as refusal:
            if refusal.code != "not_found":
                raise
            return str(self._rest.call("POST", "experiments/create", {"name": self.name})["experiment_id"])
        if found.get("lifecycle_stage") == "deleted":
            self._rest.call("POST", "experiments/restore", {"experiment_id": found["experiment_id"]})
        return str(found["experiment_id"])


def require_run_writable(rest: MlflowRest, run_id: str) -> None:
    """Raise if the account may not write to a run. The call has no tag, metric or param: nothing is changed."""
    rest.set_tags(run_id, {})
