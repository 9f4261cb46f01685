"""Page of the origin of one version, and the same as JSON: everything that `onnx-release trace` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_onnx import airflow_urls
from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.ui import numbers, stored_report
from onnx_release.errors import Refused, Transient
from onnx_release.records import ReleaseReport
from onnx_release.training_runs import tags
from onnx_release.training_runs.records import ModelVersionEntry, RegisteredModel, key_values
from onnx_release.training_runs.trace import Trace, read_trace, run_id_of, summary

VERSION_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class RestServer:
    """MLflow's REST API, for `read_trace`."""

    rest: MlflowRest

    def registered_model(self, name: str) -> RegisteredModel:
        """Return a registered model."""
        return self.rest.registered_model(name)

    def model_version(self, name: str, version: int) -> ModelVersionEntry:
        """Return a version of a registered model."""
        return self.rest.model_version(name, version)

    def run_fields(self, run_id: str) -> dict[str, Any] | None:
        """Return a run, None if its record was purged."""
        try:
            return self.rest.run_fields(run_id)
        except TrackingRefused as refusal:
            if refusal.code != "not_found":
                raise
            return None

    def report(self, run_id: str, path: str) -> ReleaseReport | None:
        """Return a report among the artifacts of a run."""
        try:
            return stored_report.read_report(self.rest, run_id, path)
        except (Refused, Transient):
            # MLflow has the error of a fault for a missing file.
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceView:
    """The origin of one version for people.

    :param facts: the facts with their names. `params` and `metrics` are those of the training.
    """

    trace: Trace
    document: Mapping[str, Any]
    facts: tuple[tuple[str, str], ...]
    datasets: tuple[tuple[str, str, str], ...]
    params: tuple[tuple[str, str], ...]
    metrics: tuple[tuple[str, str], ...]
    gates: tuple[GateRow, ...]
    files: tuple[tuple[str, str, str], ...]

    @property
    def run_id(self) -> str:
        """The training run, empty for a version of another program."""
        return run_id_of(self.trace.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """One gate for people."""

    verdict: str
    title: str
    subject: str
    measured: str
    limit: str


def read(rest: MlflowRest, name: str, version: str) -> Trace:
    """Return the entries about a version.

    :param name: a validated model name.
    :param version: a part of an address, which may be any text.
    :raises TrackingRefused: ``not_found`` if it does not exist.
    """
    if not version.isascii() or not version.isdecimal() or not 0 < int(version[:12]) <= VERSION_MAX:
        raise TrackingRefused(f"The version {version!r:.80}", "does not exist", "Choose another one.", code="not_found")
    return read_trace(RestServer(rest), name, int(version[:12]))


def may_be_shown(trace: Trace, hidden_dags: set[str]) -> bool:
    """Return False for the release of a DAG whose DAG runs the user may not read. The tags are not trusted."""
    run_tags = key_values(((trace.run or {}).get("data") or {}).get("tags"))
    urls = run_tags.get(tags.DAG_RUN_URL, ""), trace.version.tags.get(tags.VERSION_DAG_RUN, "")
    return not any(airflow_urls.dag_id_of(url) in hidden_dags for url in urls)


def trace_view(trace: Trace) -> TraceView:
    """Return the view of a version."""
    from onnx_release.report.gates import TITLES
    from onnx_release.report.numbers import limit_text, measured_text

    document = trace.document()
    run = document["training_run"]
    gates = trace.report.gates if trace.report else ()
    return TraceView(
        trace=trace,
        document=document,
        facts=tuple(summary(document)),
        datasets=tuple((one["name"], one["digest"], one["source"]) for one in run.get("datasets", [])),
        files=tuple((file.path, file.sha256, str(file.size_bytes)) for file in trace.files),
        params=tuple(run.get("params", {}).items()),
        metrics=tuple((name, numbers.digits(value)) for name, value in run.get("metrics", {}).items()),
        gates=tuple(
            GateRow(
                verdict=str(gate.verdict),
                title=TITLES.get(gate.name, gate.name),
                subject=gate.subject,
                measured=measured_text(gate),
                limit=limit_text(gate),
            )
            for gate in gates
        ),
    )
