"""The bytes judged are the bytes shipped: what must hold before anything leaves the work folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airflow_onnx import params
from onnx_release.errors import ReportRefused
from onnx_release.records import BenchmarkReport, CheckReport, OnnxArtifact
from onnx_release.records.base import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An artifact with the reports that were made of it."""

    artifact: OnnxArtifact
    check: CheckReport
    benchmark: BenchmarkReport

    @classmethod
    def read(cls, artifact: Any, check: Any, benchmark: Any) -> Judged:
        """Read what `tune`, `check` and `parity_latency` returned; `Refused` names a task without a record."""
        return cls(
            artifact=params.record(OnnxArtifact, artifact, "tune"),
            check=params.record(CheckReport, check, "check"),
            benchmark=params.record(BenchmarkReport, benchmark, "parity_latency"),
        )

    def parts(self) -> dict[str, Record]:
        """Return the records by the names that `ReleaseReport` gives them."""
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
