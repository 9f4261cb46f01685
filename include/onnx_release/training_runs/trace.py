"""Origin of one version and all that happened to it, from MLflow alone: for the command and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from onnx_release.limits import REPORT_FILE
from onnx_release.records import AliasMove, FileDigest, ReleaseReport
from onnx_release.records.artifact import Precision
from onnx_release.records.provenance import TrainingFacts
from onnx_release.training_runs import tags
from onnx_release.training_runs.alias_moves import moves_in
from onnx_release.training_runs.facts import training_facts
from onnx_release.training_runs.records import ModelVersionEntry, RegisteredModel


class TraceServer(Protocol):
    """Client of one MLflow server. Calls raise `Refused` for an object that does not exist, and `Transient`."""

    def registered_model(self, name: str) -> RegisteredModel:
        """Return a registered model."""

    def model_version(self, name: str, version: int) -> ModelVersionEntry:
        """Return a version of a registered model."""

    def run_fields(self, run_id: str) -> dict[str, Any] | None:
        """Return a run as MLflow's REST API does, deleted or not. Return None if its record is gone."""

    def report(self, run_id: str, path: str) -> ReleaseReport | None:
        """Return a report among the artifacts of a run. Return None if there is no readable one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Entries of MLflow about one version. Their texts are not trusted.

    Attributes:
        run: The training run as MLflow's REST API returns it. None if its record is gone.
        report: The report of the release that made the version. None if the training run does not have it any more.
    """

    model: RegisteredModel
    version: ModelVersionEntry
    run: Mapping[str, Any] | None
    report: ReleaseReport | None

    @property
    def facts(self) -> TrainingFacts:
        """The facts that the training run logged."""
        return training_facts(dict(self.run)) if self.run else TrainingFacts()

    @property
    def files(self) -> tuple[FileDigest, ...]:
        """The files with their digests, from the report."""
        return self.report.artifact.files if self.report and self.report.artifact else ()

    @property
    def moves(self) -> tuple[AliasMove, ...]:
        """The moves to and from this version, the newest last."""
        number = self.version.version
        return tuple(one for one in moves_in(self.model.tags) if number in (one.to_version, one.from_version))

    @property
    def aliases(self) -> list[str]:
        """The aliases that the version has."""
        return sorted(alias for alias, holder in self.model.aliases.items() if holder == self.version.version)

    def document(self) -> dict[str, Any]:
        """Return everything as a JSON-safe dict."""
        version = self.version
        return {
            "model": self.model.name,
            "version": version.version,
            "aliases": self.aliases,
            "created_at": _time(version.created_at_ms),
            "sha256": version.tags.get(tags.VERSION_SHA256),
            "source": version.source,
            "files": [file.to_dict() for file in self.files],
            "signature": version.tags.get(tags.VERSION_SIGNATURE),
            "status": version.tags.get(tags.VERSION_STATUS),
            "approval": version.tags.get(tags.APPROVAL),
            "dag_run": version.tags.get(tags.VERSION_DAG_RUN),
            "headline": self.report.headline if self.report else None,
            "gates": [gate.to_dict() for gate in self.report.gates] if self.report else [],
            "training_run": self._training_run(),
            "moves": [move.to_dict() for move in self.moves],
        }

    def _training_run(self) -> dict[str, Any]:
        if self.run is None:
            return {"run_id": run_id_of(self.version) or None, "found": False}
        info = self.run["info"]
        return {
            "run_id": info["run_id"],
            "found": info.get("lifecycle_stage") != "deleted",
            "name": info.get("run_name"),
            "experiment_id": info.get("experiment_id"),
            "user": info.get("user_id"),
            "ended_at": _time(int(info.get("end_time") or 0)),
            **self.facts.to_dict(),
        }


def read_trace(server: TraceServer, name: str, version: int) -> Trace:
    """Return the entries about one version.

    Args:
        server: The MLflow server.
        name: The registered model.
        version: The number of the version.

    Raises:
        Refused: The version does not exist.
        Transient: MLflow does not answer.
    """
    model, entry = server.registered_model(name), server.model_version(name, version)
    run_id = run_id_of(entry)
    run = server.run_fields(run_id) if run_id else None
    return Trace(model=model, version=entry, run=run, report=_report(server, name, entry, run))


def run_id_of(version: ModelVersionEntry) -> str:
    """Return the id of the training run. Empty for a version of another program."""
    return version.run_id or version.tags.get(tags.VERSION_TRAINING_RUN, "")


def summary(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts that a person reads first, each with its name."""
    run = document["training_run"]
    return [
        ("version", f"{document['model']} v{document['version']}, made {document['created_at']}"),
        ("aliases", ", ".join(document["aliases"]) or "none"),
        ("result", document["headline"] or document["status"] or "unknown: the report is gone"),
        ("sha256", document["sha256"] or "none"),
        ("files", str(document["source"])),
        ("signature", document["signature"] or "none"),
        ("DAG run", document["dag_run"] or "unknown"),
        ("approval", document["approval"] or "none"),
        ("training run", _run_text(run)),
        ("script", " at ".join(filter(None, (run.get("source_name"), run.get("source_commit")))) or "unknown"),
    ]


def move_text(move: AliasMove) -> str:
    """Return the versions of a move for people."""
    before, after = (f"v{one}" if one else "no version" for one in (move.from_version, move.to_version))
    return f"{before} to {after}"


def _report(
    server: TraceServer, name: str, version: ModelVersionEntry, run: Mapping[str, Any] | None
) -> ReleaseReport | None:
    if run is None or run["info"].get("lifecycle_stage") == "deleted":
        return None
    precision = version.tags.get(tags.VERSION_PRECISION, "")
    # The tag is not trusted, and becomes a part of a path.
    below = f"/{precision}" if precision in set(map(str, Precision)) - {str(Precision.EXACT)} else ""
    report = server.report(run["info"]["run_id"], f"{tags.ROOT}/{name}{below}/{REPORT_FILE}")
    # A later release of the run may have replaced it.
    sha256 = report.artifact.sha256 if report and report.artifact else None
    return report if sha256 and sha256 == version.tags.get(tags.VERSION_SHA256) else None


def _run_text(run: Mapping[str, Any]) -> str:
    if not run["found"]:
        return f"{run['run_id'] or 'unknown'}, which was deleted"
    return (
        f"{run['run_id']} ({run['name'] or 'without a name'}), ended {run['ended_at']}, by {run['user'] or 'unknown'}"
    )


def _time(at_ms: int) -> str | None:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}" if at_ms else None
