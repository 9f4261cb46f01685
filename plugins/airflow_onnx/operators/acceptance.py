"""Acceptance of an artifact before it leaves the work folder, and of the same bytes at its promotion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_onnx import airflow_urls, params
from onnx_release.errors import ReportRefused
from onnx_release.records import (
    BenchmarkReport,
    CheckReport,
    ModelVersion,
    OnnxArtifact,
    ReleaseReport,
    S3Object,
    TrainedModel,
)

if TYPE_CHECKING:
    from airflow.sdk import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedArtifact:
    """An artifact with its reports."""

    artifact: OnnxArtifact
    check: CheckReport
    benchmark: BenchmarkReport

    @classmethod
    def read(cls, artifact: Any, check: Any, benchmark: Any) -> JudgedArtifact:
        """Read the results of `tune`, `check` and `parity_latency`.

        :raises RecordRefused: naming the task without a result.
        """
        return cls(
            artifact=params.record(OnnxArtifact, artifact, "tune"),
            check=params.record(CheckReport, check, "check"),
            benchmark=params.record(BenchmarkReport, benchmark, "parity_latency"),
        )

    def evidence(self) -> dict[str, Any]:
        """Return the records by the fields of `ReleaseReport`."""
        return {"artifact": self.artifact, "check": self.check, "benchmark": self.benchmark}


def require_accepted(artifact: OnnxArtifact, check: CheckReport, benchmark: BenchmarkReport) -> None:
    """Raise for an artifact that may not ship.

    :raises ReportRefused: with every reason that `report.acceptance` returns.
    """
    from onnx_release.report.acceptance import acceptance

    if reasons := acceptance(artifact, check, benchmark):
        raise ReportRefused(
            f"The artifact {artifact.sha256}",
            f"is not accepted: {'; '.join(reasons)}",
            "Clear the task 'check' with its downstream tasks.",
            code="not_accepted",
        )


def accepted_report(context: Context, trained_model: TrainedModel, judged: JudgedArtifact) -> ReleaseReport:
    """Return the report of an accepted artifact.

    :raises ReportRefused: if the artifact is not accepted.
    """
    from onnx_release.report.release_report import build_report

    require_accepted(judged.artifact, judged.check, judged.benchmark)
    report = build_report(trained_model, judged.artifact, judged.check, judged.benchmark)
    run: Any = context["dag_run"]
    return report.replace(dag_run_url=airflow_urls.dag_run_url(run.dag_id, run.run_id))


def require_same_bytes(artifact: OnnxArtifact, uploaded: S3Object, version: ModelVersion) -> None:
    """Raise if the objects or the version belong to another artifact.

    A partly cleared DAG run can combine the records of two exports.

    :raises ReportRefused: naming every record with another sha256.
    """
    _require_same(artifact, {f"the upload to {uploaded.uri}": uploaded.sha256, **_named(version)})


def require_same_version(artifact: OnnxArtifact, version: ModelVersion) -> None:
    """Raise `ReportRefused` if the version belongs to another artifact."""
    _require_same(artifact, _named(version))


def _named(version: ModelVersion) -> dict[str, str]:
    return {f"version {version.version}": version.sha256}


def _require_same(artifact: OnnxArtifact, others: dict[str, str]) -> None:
    if wrong := [f"{name} has the sha256 {sha256}" for name, sha256 in others.items() if sha256 != artifact.sha256]:
        raise ReportRefused(
            f"The artifact {artifact.sha256}",
            f"is not the one that was uploaded and registered: {'; '.join(wrong)}",
            "Clear the task 'upload' with its downstream tasks.",
            code="other_bytes",
        )
