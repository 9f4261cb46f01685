"""The bytes judged are the bytes shipped: what must hold before anything leaves the work folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from airflow_onnx import params
from onnx_release.errors import Refused
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
    """Raise `Refused`, naming all that is wrong, unless every report passed and speaks of this artifact."""
    wrong = []
    for name, report in (("check", check), ("parity", benchmark.parity), ("latency", benchmark.latency)):
        if report is None:
            wrong.append(f"{name} was not measured")
        elif report.sha256 != artifact.sha256:
            wrong.append(f"{name} speaks of {report.sha256[:16]}…, another artifact")
        elif not report.passed:
            wrong.append(f"{name} did not pass")
    if benchmark.sha256 != artifact.sha256 or not benchmark.passed:
        wrong.append("the benchmark as a whole did not pass for this artifact")
    if wrong:
        raise Refused(
            f"artifact {artifact.sha256}",
            "; ".join(wrong),
            "Clear the task 'check' with its downstream tasks and rerun.",
        )
