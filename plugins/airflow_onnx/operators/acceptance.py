"""The bytes judged are the bytes shipped: what must hold before anything leaves the work folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_onnx import airflow_urls, params
from onnx_release.errors import ReportRefused
from onnx_release.records import BenchmarkReport, CheckReport, OnnxArtifact, ReleaseReport, TrainedModel
from onnx_release.records.base import Record

if TYPE_CHECKING:
    from airflow.sdk import Context


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


def accepted_report(context: Context, model_name: str, trained_model: TrainedModel, judged: Judged) -> ReleaseReport:
    """Return the report of an artifact that every step accepted. Any other artifact is refused."""
    from onnx_release.report.release_report import build_report

    require_accepted(judged.artifact, judged.check, judged.benchmark)
    report = build_report(model_name, trained_model, judged.artifact, judged.check, judged.benchmark)
    run: Any = context["dag_run"]
    return report.replace(dag_run_url=airflow_urls.dag_run_url(run.dag_id, run.run_id))
