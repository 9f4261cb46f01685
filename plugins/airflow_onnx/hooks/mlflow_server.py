"""Address and credentials of an MLflow server, and the meaning of its error codes."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.address import server_address
from onnx_release.errors import Transient
from onnx_release.text import shorten

if TYPE_CHECKING:
    from airflow.sdk import Connection

# MLflow's server returns these for a wrong request. The same request gets the same answer again.
MISSING_CODES = {"NOT_FOUND", "RESOURCE_DOES_NOT_EXIST"}
FORBIDDEN_CODES = {"PERMISSION_DENIED", "UNAUTHENTICATED", "401", "403"}
OTHER_FINAL_CODES = {
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "FEATURE_DISABLED",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_IMPLEMENTED",
    "RESOURCE_ALREADY_EXISTS",
}
_OUTAGE = "Airflow tries again. If that does not help, check the server's log and the network."


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowServer:
    """Address, credentials and TLS settings of an MLflow server. Its `repr` shows no secret."""

    conn_id: str
    tracking_uri: str
    ui_url: str
    login: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    insecure_tls: bool = False
    ca_file: str | None = None

    @classmethod
    def from_connection(cls, conn: Connection) -> MlflowServer:
        """Read an Airflow connection of type `mlflow`.

        :raises TrackingRefused: if its host is not an http(s) address, or contains credentials.
        """
        uri = _address(conn)
        extra = conn.extra_dejson
        return cls(
            conn_id=conn.conn_id,
            tracking_uri=uri,
            ui_url=str(extra.get("ui_url") or uri).rstrip("/"),
            login=conn.login or None,
            password=conn.password or None,
            token=extra.get("token") or None,
            insecure_tls=str(extra.get("insecure_tls", "")).lower() in ("true", "1"),
            ca_file=extra.get("ca_file") or None,
        )

    def authorization(self) -> str | None:
        """Return the value of the Authorization header, or None for a server without sign-in."""
        if self.token:
            return f"Bearer {self.token}"
        if not self.login:
            return None
        # In UTF-8, as MLflow's server decodes it.
        pair = f"{self.login}:{self.password or ''}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    @property
    def verify(self) -> bool | str:
        """The `verify` argument of a TLS client: False, the path of a CA file, or True."""
        return False if self.insecure_tls else self.ca_file or True

    def run_url(self, experiment_id: str, run_id: str) -> str:
        """Return the address of a training run's page.

        :param experiment_id: the id of its experiment, empty if it is unknown: MLflow then finds it.
        """
        if not experiment_id:
            return f"{self.ui_url}/#/runs/{quote(run_id, safe='')}"
        return f"{self.ui_url}/#/experiments/{quote(experiment_id, safe='')}/runs/{quote(run_id, safe='')}"

    def artifact_url(self, experiment_id: str, run_id: str, path: str) -> str:
        """Return the address of a file among the artifacts of a training run."""
        return f"{self.run_url(experiment_id, run_id)}/artifacts/{quote(path)}"

    def version_url(self, name: str, version: int) -> str:
        """Return the address of a model version's page."""
        return f"{self.ui_url}/#/models/{quote(name, safe='')}/versions/{version}"

    def error_response(
        self, subject: str, error_code: str, text: str, action: str | None = None
    ) -> TrackingRefused | Transient:
        """Return the exception for an error response.

        :param subject: the object of the request, for example ``The run 3f2a``.
        :param error_code: MLflow's error code, or the HTTP status if the response has none.
        :param text: the server's message.
        :param action: the next step for a person if the request is refused.
        """
        # The client puts the code before the message, and the server may have done so too.
        text = shorten(text, 400)
        while text.startswith(error_code) and error_code:
            text = text.removeprefix(error_code).lstrip(": ")
        answer = f"({error_code})" + (f": {text}" if text else "")
        connection = f"Check the connection '{self.conn_id}' and its user's permissions."
        if "IntegrityError" in text:
            # The server inserts a record that it has not found. Another request may insert the same one in between.
            problem = f"was written by another request at the same time, at {self.tracking_uri} {answer}"
            return Transient(subject, problem, "Airflow tries again.")
        if error_code in MISSING_CODES:
            problem = f"does not exist in MLflow at {self.tracking_uri} {answer}"
            return TrackingRefused(subject, problem, action or "Check its id or name.", code="not_found")
        if error_code in FORBIDDEN_CODES:
            problem = f"is refused by MLflow at {self.tracking_uri} {answer}"
            return TrackingRefused(subject, problem, connection, code="mlflow_permission")
        if error_code in OTHER_FINAL_CODES:
            problem = f"is refused by MLflow at {self.tracking_uri} {answer}"
            return TrackingRefused(subject, problem, action or connection, code="mlflow_refused")
        return Transient(subject, f"failed at MLflow at {self.tracking_uri} {answer}", _OUTAGE)

    def unreachable(self, subject: str, reason: object) -> Transient:
        """Return the exception for a request without a usable response."""
        # A time-out of the asynchronous client has no text.
        text = shorten(reason, 400) or type(reason).__name__
        problem = f"got no usable answer from MLflow at {self.tracking_uri}: {text}"
        return Transient(subject, problem, _OUTAGE)


def _address(conn: Connection) -> str:
    parts = server_address(conn)
    if parts is None or parts.username or parts.password:
        host = conn.host or ""
        shown = f": {host!r:.200}" if "@" not in host else ""
        raise TrackingRefused(
            f"The Airflow connection '{conn.conn_id}'",
            "has credentials inside its server address" if "@" in host else f"has no usable server address{shown}",
            "Set Server to an address like https://mlflow.example.org. Put user and password into their own fields.",
            code="mlflow_address",
        )
    return parts.geturl()
