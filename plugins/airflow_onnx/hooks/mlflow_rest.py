"""A REST client for MLflow's server, with a blocking and an asynchronous face.

It does not import MLflow: that import takes two seconds, and MLflow's client would block the triggerer. This module
has all paths, headers, timeouts, paging and error mapping of these calls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import httpx

from airflow_onnx.deployment import settings
from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow_server import MISSING_CODES, MlflowServer
from onnx_release.errors import Transient
from onnx_release.records.provenance import TrainingFacts
from onnx_release.training_runs.facts import training_facts
from onnx_release.training_runs.records import Experiment, ModelVersionEntry, RegisteredModel, TrainingRun
from onnx_release.training_runs.server import PAGE_SIZE, RunQuery, versions_of_runs

Method = Literal["GET", "POST", "PUT", "DELETE"]


@dataclass(frozen=True, slots=True)
class _Call:
    """One request. The arguments of a GET travel in its address, those of the others as JSON."""

    method: Method
    path: str
    arguments: dict[str, Any]

    def request(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        if self.method == "GET":
            return client.build_request("GET", self.path, params=self.arguments)
        return client.build_request(self.method, self.path, json=self.arguments)

    def next_page(self, answer: dict[str, Any]) -> _Call | None:
        """Return the call for the page after this answer, or None after the last page."""
        token = answer.get("next_page_token")
        return replace(self, arguments=self.arguments | {"page_token": token}) if token else None


_EXPERIMENTS = _Call("GET", "experiments/search", {"max_results": 1000})


def _search_runs(query: RunQuery) -> _Call:
    arguments = {
        "experiment_ids": list(query.experiment_ids),
        "filter": query.filter,
        "max_results": query.page_size,
        "order_by": [f"{query.order_by} {'DESC' if query.newest_first else 'ASC'}"],
        "run_view_type": "ALL" if query.with_deleted else "ACTIVE_ONLY",
    }
    return _Call("POST", "runs/search", arguments)


def _get_run(run_id: str) -> _Call:
    return _Call("GET", "runs/get", {"run_id": run_id})


def _client_arguments(server: MlflowServer, timeout_s: float | None = None) -> dict[str, Any]:
    header = server.authorization()
    return {
        "base_url": f"{server.tracking_uri}/api/2.0/mlflow/",
        "headers": {"Authorization": header} if header else {},
        "verify": server.verify,
        "timeout": timeout_s or settings.request_timeout_s(),
    }


def _parse(server: MlflowServer, call: _Call, response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        raise _error(server, call, response)
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        # For example a proxy's login page with status 200.
        raise server.unreachable(_subject(call), "the response is not a JSON object")
    return answer


def _error(server: MlflowServer, call: _Call, response: httpx.Response) -> TrackingRefused | Transient:
    try:
        body = response.json()
        error_code, text = str(body.get("error_code", "")), str(body.get("message", ""))
    except (ValueError, AttributeError):
        error_code, text = "", response.text
    action = f"Check the connection '{server.conn_id}', its user's permissions, and the filter if one is set."
    if error_code in MISSING_CODES:
        action = "Check its id or name."
    status = str(response.status_code)
    # A sign-in error is final, also with a body of another server in front of MLflow.
    return server.error_response(
        _subject(call), status if status in ("401", "403") else error_code or status, text, action
    )


def _subject(call: _Call) -> str:
    run_id = call.arguments.get("run_id")
    return f"The training run {run_id}" if run_id else f"The call {call.path}"


class MlflowRest:
    """The blocking client of one server, for a ``with`` block. Calls raise `TrackingRefused` or `Transient`.

    :param timeout_s: the longest wait for an answer; None: the option `request_timeout_s`.
    """

    def __init__(self, server: MlflowServer, timeout_s: float | None = None) -> None:
        self.server = server
        self._client = httpx.Client(**_client_arguments(server, timeout_s))

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close its connections."""
        self._client.close()

    def experiments(self) -> list[Experiment]:
        """Return all experiments that are not deleted."""
        return [Experiment.from_json(row) for row in self._rows(_EXPERIMENTS, "experiments")]

    def runs(self, query: RunQuery) -> Iterator[TrainingRun]:
        """Yield the runs. The next page is requested when the one before was read."""
        if query.experiment_ids:
            yield from (TrainingRun.from_json(row) for row in self._rows(_search_runs(query), "runs"))

    def run(self, run_id: str) -> TrainingRun:
        """Return one run, deleted or not."""
        return TrainingRun.from_json(self._send(_get_run(run_id))["run"])

    def run_fields(self, run_id: str) -> dict[str, Any]:
        """Return a run as MLflow does, deleted or not."""
        found: dict[str, Any] = self._send(_get_run(run_id))["run"]
        return found

    def facts(self, run_id: str) -> TrainingFacts:
        """Return parameters, metrics and datasets of a run."""
        return training_facts(self.run_fields(run_id))

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags of a run in one call. A tag without a value is deleted."""
        rows = [{"key": key, "value": value} for key, value in tags.items() if value]
        self._send(_Call("POST", "runs/log-batch", {"run_id": run_id, "tags": rows}))
        for key in (key for key, value in tags.items() if not value):
            try:
                self._send(_Call("POST", "runs/delete-tag", {"run_id": run_id, "key": key}))
            except TrackingRefused as error:
                # The run may be without it.
                if error.code != "not_found":
                    raise

    def versions(self, run_ids: Sequence[str]) -> Iterator[ModelVersionEntry]:
        """Yield the versions of all registered models that were made from one of the runs."""
        arguments = {"filter": versions_of_runs(run_ids), "max_results": 1000}
        rows = self._rows(_Call("GET", "model-versions/search", arguments), "model_versions")
        yield from map(ModelVersionEntry.from_json, rows)

    def model_versions(self, name: str) -> list[ModelVersionEntry]:
        """Return all versions of a registered model, the newest first.

        :param name: a validated model name.
        """
        arguments = {"filter": f"name='{name}'", "max_results": PAGE_SIZE, "order_by": ["version_number DESC"]}
        rows = self._rows(_Call("GET", "model-versions/search", arguments), "model_versions")
        return [ModelVersionEntry.from_json(row) for row in rows]

    def model_version(self, name: str, version: int) -> ModelVersionEntry:
        """Return a version of a registered model.

        :raises TrackingRefused: if it does not exist.
        """
        answer = self._send(_Call("GET", "model-versions/get", {"name": name, "version": str(version)}))
        return ModelVersionEntry.from_json(answer["model_version"])

    def all_versions(self, name: str = "") -> Iterator[dict[str, Any]]:
        """Yield the versions of all registered models as MLflow returns them. It lists only those that may be read.

        :param name: a validated model name, for the versions of one model.
        """
        arguments = {"max_results": 1000} | ({"filter": f"name='{name}'"} if name else {})
        yield from self._rows(_Call("GET", "model-versions/search", arguments), "model_versions")

    def version_files(self, name: str, version: str) -> str:
        """Return the address of a version's files. A version may be a copy of another one."""
        arguments = {"name": name, "version": version}
        answer = self._send(_Call("GET", "model-versions/get-download-uri", arguments))
        return str(answer.get("artifact_uri") or "")

    def registered_model(self, name: str) -> RegisteredModel:
        """Return a registered model.

        :raises TrackingRefused: if it does not exist.
        """
        answer = self._send(_Call("GET", "registered-models/get", {"name": name}))
        return RegisteredModel.from_json(answer["registered_model"])

    def registered_models(self) -> list[RegisteredModel]:
        """Return all registered models."""
        rows = self._rows(_Call("GET", "registered-models/search", {"max_results": 1000}), "registered_models")
        return [RegisteredModel.from_json(row) for row in rows]

    def run_file(self, run_id: str, path: str, bytes_max: int) -> bytes:
        """Return the content of a small file among the run's artifacts.

        :raises TrackingRefused: if it does not exist, or is larger than `bytes_max`.
        """
        # MLflow's own pages read files at this address, which has no version.
        url, arguments = f"{self.server.tracking_uri}/get-artifact", {"run_id": run_id, "path": path}
        call, content = _Call("GET", "get-artifact", arguments), bytearray()
        try:
            with self._client.stream("GET", url, params=arguments) as response:
                if response.is_error:
                    response.read()
                    raise _error(self.server, call, response)
                for part in response.iter_bytes():
                    content += part
                    if len(content) > bytes_max:
                        raise TrackingRefused(
                            f"The file {path} of the training run {run_id}",
                            f"is larger than {bytes_max} bytes",
                            "Read it in MLflow.",
                            code="file_too_large",
                        )
        except httpx.TransportError as error:
            raise self.server.unreachable(_subject(call), error) from error
        return bytes(content)

    def run_files(self, run_id: str, path: str = "") -> list[dict[str, Any]]:
        """Return the entries of a folder of the run's artifacts, with paths relative to the artifacts' root."""
        arguments = {"run_id": run_id} | ({"path": path} if path else {})
        return list(self._rows(_Call("GET", "artifacts/list", arguments), "files"))

    def model_files(self, model_id: str, path: str = "") -> list[dict[str, Any]]:
        """Return the entries of a folder of a logged model.

        :raises TrackingRefused: if the model was deleted.
        """
        arguments = {"artifact_directory_path": path} if path else {}
        return list(self._rows(_Call("GET", f"logged-models/{model_id}/artifacts/directories", arguments), "files"))

    def logged_models(self, experiment_ids: Sequence[str], condition: str) -> list[dict[str, Any]]:
        """Return the info of each logged model of the experiments that matches and that is not deleted.

        :param condition: a filter of `onnx_release.training_runs.server`.
        """
        arguments = {"experiment_ids": list(experiment_ids), "filter": condition, "max_results": 100}
        return [row["info"] for row in self._rows(_Call("POST", "logged-models/search", arguments), "models")]

    def logged_model(self, model_id: str) -> dict[str, Any]:
        """Return the info of a logged model.

        :raises TrackingRefused: if the model was deleted.
        """
        info: dict[str, Any] = self._send(_Call("GET", f"logged-models/{model_id}", {}))["model"]["info"]
        return info

    def call(self, method: Method, path: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a call that has no method of its own, below ``api/2.0/mlflow/``."""
        return self._send(_Call(method, path, arguments))

    def raw(self, method: Method, path: str, content: bytes = b"") -> httpx.Response:
        """Return the answer to a request that is not JSON.

        :param path: the path below the server's address.
        """
        call, url = _Call(method, path, {}), f"{self.server.tracking_uri}/{path}"
        try:
            response = self._client.request(method, url, content=content)
        except httpx.TransportError as error:
            raise self.server.unreachable(_subject(call), error) from error
        if response.is_error:
            raise _error(self.server, call, response)
        return response

    def _rows(self, first: _Call, key: str) -> Iterator[dict[str, Any]]:
        call: _Call | None = first
        while call:
            answer = self._send(call)
            yield from answer.get(key) or []
            call = call.next_page(answer)

    def _send(self, call: _Call) -> dict[str, Any]:
        try:
            response = self._client.send(call.request(self._client))
        except httpx.TransportError as error:
            raise self.server.unreachable(_subject(call), error) from error
        return _parse(self.server, call, response)


class AsyncMlflowRest:
    """The asynchronous client of one server, for an ``async with`` block. It raises the same errors."""

    def __init__(self, server: MlflowServer) -> None:
        self.server = server
        self._client = httpx.AsyncClient(**_client_arguments(server))

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def experiments(self) -> list[Experiment]:
        """Return all experiments that are not deleted."""
        return [Experiment.from_json(row) async for row in self._rows(_EXPERIMENTS, "experiments")]

    async def first_page(self, query: RunQuery) -> list[TrainingRun]:
        """Return at most ``query.page_size`` runs."""
        if not query.experiment_ids:
            return []
        answer = await self._send(_search_runs(query))
        return [TrainingRun.from_json(row) for row in answer.get("runs") or []]

    async def run(self, run_id: str) -> TrainingRun:
        """Return one run, deleted or not."""
        return TrainingRun.from_json((await self._send(_get_run(run_id)))["run"])

    async def _rows(self, first: _Call, key: str) -> AsyncIterator[dict[str, Any]]:
        call: _Call | None = first
        while call:
            answer = await self._send(call)
            for row in answer.get(key) or []:
                yield row
            call = call.next_page(answer)

    async def _send(self, call: _Call) -> dict[str, Any]:
        try:
            response = await self._client.send(call.request(self._client))
        except httpx.TransportError as error:
            raise self.server.unreachable(_subject(call), error) from error
        return _parse(self.server, call, response)
