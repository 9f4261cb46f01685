"""MLflow's REST API, as far as finding training runs needs it, without MLflow's own package.

Importing that package takes two seconds, which every look at the server would pay; and its client blocks, which the
triggerer must not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from airflow_onnx.hooks.mlflow import FINAL_ERROR_CODES, OUTAGE, MlflowServer
from onnx_release.errors import Refused, Transient

REQUEST_TIMEOUT_S = 30.0
PAGE_SIZE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """A run as MLflow's search returns it; all texts are the training's own, and so hostile.

    `ended_at_ms` is the clock of the training's machine. `model_ids` are the logged models, the last step's first.
    """

    run_id: str
    name: str
    experiment_id: str
    status: str
    deleted: bool
    ended_at_ms: int
    tags: dict[str, str]
    model_ids: tuple[str, ...]

    @classmethod
    def from_json(cls, run: dict[str, Any]) -> TrainingRun:
        """Read one run of an answer; MLflow leaves out whatever is empty."""
        info = run["info"]
        outputs = (run.get("outputs") or {}).get("model_outputs") or []
        return cls(
            run_id=info["run_id"],
            name=info.get("run_name") or "",
            experiment_id=info["experiment_id"],
            status=info["status"],
            deleted=info.get("lifecycle_stage") == "deleted",
            ended_at_ms=int(info.get("end_time") or 0),
            tags={tag["key"]: tag["value"] for tag in (run.get("data") or {}).get("tags") or []},
            model_ids=tuple(
                model["model_id"] for model in sorted(outputs, key=lambda m: int(m.get("step") or 0), reverse=True)
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunQuery:
    """What to ask of ``runs/search``: a filter in MLflow's own language, in the order of the runs' ends."""

    experiment_ids: Sequence[str]
    filter: str
    newest_first: bool = False
    with_deleted: bool = False
    page_size: int = PAGE_SIZE

    def body(self, page_token: str = "") -> dict[str, Any]:
        """Return the request's body for one page."""
        body: dict[str, Any] = {
            "experiment_ids": list(self.experiment_ids),
            "filter": self.filter,
            "max_results": self.page_size,
            "order_by": [f"attributes.end_time {'DESC' if self.newest_first else 'ASC'}"],
            "run_view_type": "ALL" if self.with_deleted else "ACTIVE_ONLY",
        }
        return body | ({"page_token": page_token} if page_token else {})


def client_settings(server: MlflowServer) -> dict[str, Any]:
    """Return what an httpx client, blocking or not, needs to speak to the server."""
    header = server.authorization()
    return {
        "base_url": f"{server.tracking_uri}/api/2.0/mlflow/",
        "headers": {"Authorization": header} if header else {},
        "verify": server.verify,
        "timeout": REQUEST_TIMEOUT_S,
    }


class MlflowRest:
    """A client of one server, for use in a ``with`` block. Calls raise `Refused` or `Transient`."""

    def __init__(self, server: MlflowServer) -> None:
        self.server = server
        self._client = httpx.Client(**client_settings(server))

    def __enter__(self) -> MlflowRest:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close its connections."""
        self._client.close()

    def experiments(self) -> list[dict[str, Any]]:
        """Return all experiments that are not deleted."""
        return list(self._pages("GET", "experiments/search", "experiments", {"max_results": 1000}))

    def runs(self, query: RunQuery) -> Iterator[TrainingRun]:
        """Yield the runs, page by page; none when there is no experiment to look into."""
        if query.experiment_ids:
            for run in self._pages("POST", "runs/search", "runs", query.body()):
                yield TrainingRun.from_json(run)

    def run(self, run_id: str) -> TrainingRun:
        """Return one run, deleted or not."""
        return TrainingRun.from_json(self._call("GET", "runs/get", {"run_id": run_id})["run"])

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags of a run, all of them in one call."""
        rows = [{"key": key, "value": value} for key, value in tags.items()]
        self._call("POST", "runs/log-batch", {"run_id": run_id, "tags": rows})

    def versions(self, name: str, run_id: str) -> list[dict[str, Any]]:
        """Return the versions of a registered model that were made from the run; both are checked names."""
        body = {"filter": f"name='{name}' and run_id='{run_id}'", "max_results": 100}
        return list(self._pages("GET", "model-versions/search", "model_versions", body))

    def run_files(self, run_id: str, path: str = "") -> list[dict[str, Any]]:
        """Return the entries of a folder of the run's artifacts, with paths from their root."""
        body = {"run_id": run_id} | ({"path": path} if path else {})
        return list(self._pages("GET", "artifacts/list", "files", body))

    def model_files(self, model_id: str, path: str = "") -> list[dict[str, Any]]:
        """Return the entries of a folder of a logged model; a deleted model is `Refused`."""
        body = {"artifact_directory_path": path} if path else {}
        return list(self._pages("GET", f"logged-models/{model_id}/artifacts/directories", "files", body))

    def _pages(self, method: str, path: str, key: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        token: dict[str, Any] = {}
        while True:
            answer = self._call(method, path, body | token)
            yield from answer.get(key) or []
            if not answer.get("next_page_token"):
                return
            token = {"page_token": answer["next_page_token"]}

    def _call(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        by_address = method == "GET"
        with self._explained(path):
            answer = self._client.request(
                method, path, params=body if by_address else None, json=None if by_address else body
            )
            answer.raise_for_status()
            return dict(answer.json())

    @contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        where = f"MLflow at {self.server.tracking_uri}"
        try:
            yield
        except httpx.HTTPStatusError as error:
            raise error_of(error.response, self.server, path) from error
        except httpx.TransportError as error:
            raise Transient(f"call {path}", f"{where} cannot be reached: {str(error)[:400]}", OUTAGE) from error
        except ValueError as error:
            # A proxy's login page, for one, comes with status 200.
            raise Transient(f"call {path}", f"{where} did not answer in JSON", OUTAGE) from error


def error_of(response: httpx.Response, server: MlflowServer, path: str) -> Refused | Transient:
    """Return what an answer with an error status means."""
    try:
        body = response.json()
        code, text = str(body.get("error_code", "")), str(body.get("message", ""))[:400]
    except (ValueError, AttributeError):
        code, text = "", response.text[:200]
    said = f"({code or response.status_code}): {text}"
    if code in FINAL_ERROR_CODES or response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        hint = f"Check the connection '{server.conn_id}', its user's rights, and the filter if one is set."
        return Refused(f"call {path}", f"MLflow at {server.tracking_uri} refuses {said}", hint)
    return Transient(f"call {path}", f"MLflow at {server.tracking_uri} did not answer as it should {said}", OUTAGE)
