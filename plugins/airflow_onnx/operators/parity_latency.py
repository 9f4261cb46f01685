"""PyTorch against ONNX Runtime: the same numbers, and how much faster."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx import params
from airflow_onnx.operators.measuring_step import MeasuringStepOperator
from airflow_onnx.storage import staging, worker_cache
from airflow_onnx.tracking import run_log
from onnx_release.errors import Refused
from onnx_release.records import BenchmarkReport, CheckReport, OnnxArtifact

if TYPE_CHECKING:
    from airflow.sdk import Context


class OnnxParityLatencyOperator(MeasuringStepOperator):
    """Compares and times both sides; returns a `BenchmarkReport` that passed, or fails with every reason.

    :param check: the `CheckReport` of the same artifact.
    """

    template_fields: Sequence[str] = (*MeasuringStepOperator.template_fields, "check")
    ui_color = "#fef9c3"

    def __init__(self, *, check: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check = check

    def release(self, context: Context) -> BenchmarkReport:
        """Measure, keep the report, raise last."""
        from onnx_release.report.acceptance import report_failures
        from onnx_release.run_step import benchmark

        artifact = self.gathered["artifact"] = params.record(OnnxArtifact, self.artifact, "tune")
        self.gathered["check"] = params.record(CheckReport, self.check, "check")
        with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
            options = self.benchmark_options(Path(scratch), self.told())
            with (
                staging.open_staging(artifact.staging_uri).local_folder(artifact) as folder,
                worker_cache.trained_model(self.hook, self.training.model_uri, artifact.trained_sha256) as trained,
            ):
                report = benchmark(trained.path, folder, artifact, options)
            self.gathered["benchmark"] = report
            self._log_figures(report)
            if not report.passed:
                run_log.log_reproduction(self.hook, self.training, self.model_name, Path(scratch, "reproduction"))
                why = "; ".join(report_failures(None, report))
                raise Refused(f"artifact {artifact.sha256}", why, "The report on the training run shows every figure.")
        return report

    def _log_figures(self, report: BenchmarkReport) -> None:
        for c in report.parity.comparisons:
            verdict = "passed" if c.passed else "; ".join(c.failures)
            mae = c.measures.texts()["mae"]
            self.log.info("parity %s, %s, batch %d: MAE %s, %s", c.output, c.sample, c.batch_size, mae, verdict)
        for note in report.parity.notes:
            self.log.info("parity: %s", note)
        if at := report.parity.divergence:
            where = f"node {at.node} ({at.op_type}) of module '{at.module}'"
            self.log.error("The difference begins at %s, MAE %s. %s", where, at.mae, at.note or "")
        for b in report.latency.batches if report.latency else ():
            self.log.info(
                "batch %d: PyTorch p50 %.3f ms, ONNX Runtime p50 %.3f ms, speedup %.2f [%.2f, %.2f]",
                b.batch_size,
                b.reference.p50_ms,
                b.candidate.p50_ms,
                b.speedup,
                b.speedup_low,
                b.speedup_high,
            )
        for warning in report.latency.warnings if report.latency else ():
            self.log.warning("%s", warning)
