"""Client of Airflow's REST API v2, for the stack and the demo."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

import requests

from stack.context import Context
from stack.errors import StackError
from stack.http import session

# A token is valid for 24 hours by default. A demo that stays open for a day must not end with status 401.
TOKEN_S = 3600.0
# A busy host may let Airflow's server wait for its processors or its database. This limit is for a server that hangs.
ANSWER_TIMEOUT_S = 120.0


class AirflowApi:
    """A logged-in client. Its calls raise `StackError` with the server's text for any status from 400 on."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._session = session()
        self._token_until = 0.0

    def call(self, method: str, path: str, body: Any = None, **params: Any) -> requests.Response:
        """Call ``/api/v2`` + `path` and return the response with any status."""
        if time.monotonic() > self._token_until:
            self._log_in()
        url = f"{self._context.airflow_url}/api/v2{path}"
        try:
            return self._session.request(method, url, json=body, params=params, timeout=ANSWER_TIMEOUT_S)
        except requests.RequestException as error:
            raise StackError(f"Airflow at {self._context.airflow_url} does not answer: {error}") from error

    def get(self, path: str, **params: Any) -> Any:
        """Return the JSON of a GET."""
        return self._checked(self.call("GET", path, **params))

    def post(self, path: str, body: Any) -> Any:
        """Return the JSON of a POST."""
        return self._checked(self.call("POST", path, body))

    def patch(self, path: str, body: Any) -> Any:
        """Return the JSON of a PATCH."""
        return self._checked(self.call("PATCH", path, body))

    def put_connection(self, connection: dict[str, Any]) -> None:
        """Create a connection, or replace the one with the same `connection_id`."""
        if self.call("GET", f"/connections/{connection['connection_id']}").ok:
            self.patch(f"/connections/{connection['connection_id']}", connection)
        else:
            self.post("/connections", connection)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """Return the XCom value of a task under `key`, or None when there is none."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/xcomEntries/{key}"
        response = self.call("GET", path, deserialize="false", stringify="false")
        return None if response.status_code == requests.codes.not_found else self._checked(response)["value"]

    def _log_in(self) -> None:
        secrets = self._context.credentials
        body = {"username": secrets.airflow_username, "password": secrets.airflow_password}
        try:
            url = f"{self._context.airflow_url}/auth/token"
            response = self._session.post(url, json=body, timeout=ANSWER_TIMEOUT_S)
        except requests.RequestException as error:
            raise StackError(f"Airflow at {self._context.airflow_url} does not answer: {error}") from error
        self._session.headers["Authorization"] = f"Bearer {self._checked(response)['access_token']}"
        self._token_until = time.monotonic() + TOKEN_S

    def _checked(self, response: requests.Response) -> Any:
        if response.ok:
            return response.json() if response.content else None
        request = response.request
        raise StackError(f"Airflow refused {request.method} {request.url}: {response.status_code} {response.text:.500}")
