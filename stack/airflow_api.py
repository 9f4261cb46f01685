"""Client of Airflow's REST API v2, for the stack and the demo."""

from __future__ import annotations

import time
from collections.abc import Iterable
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
# Between two questions about a DAG that is not parsed yet.
POLL_S = 0.5


class AirflowApi:
    """A logged-in client. Its calls raise `StackError` with the server's text for any status from 400 on."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._session = session()
        self._token_until = 0.0

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the login, for a client of another kind. Empty before the first call."""
        return {name: str(text) for name, text in self._session.headers.items() if name == "Authorization"}

    def call(self, method: str, path: str, body: Any = None, **params: Any) -> requests.Response:
        """Call ``/api/v2`` + `path` and return the response with any status."""
        return self.call_page(method, f"/api/v2{path}", body, **params)

    def call_page(self, method: str, path: str, body: Any = None, **params: Any) -> requests.Response:
        """Call a path of the server, such as that of a page, and return the response with any status."""
        if time.monotonic() > self._token_until:
            self._log_in()
        url = f"{self._context.airflow_url}{path}"
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

    def await_dags(self, names: Iterable[str], timeout_s: float) -> None:
        """Wait until Airflow has parsed these DAGs. Raise `StackError` with the import error when it cannot."""
        deadline = time.monotonic() + timeout_s
        for name in names:
            while not self.call("GET", f"/dags/{name}").ok:
                if broken := self.get("/importErrors")["import_errors"]:
                    lines = broken[0]["stack_trace"].strip().splitlines() or ["no reason"]
                    raise StackError(f"Airflow cannot import {broken[0]['filename']}: {lines[-1]}")
                if time.monotonic() > deadline:
                    raise StackError(f"Airflow has not found the DAG {name} within {timeout_s:.0f} s.")
                time.sleep(POLL_S)

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
