"""Operator of the comparison and the latency measurement of PyTorch and ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow_onnx import params
from airflow_onnx.operators.measuring_step import MeasuringStepOperator
from airflow_onnx.operators.release_step import StepRun
from airflow_onnx.storage import staging, worker_cache
from airflow_onnx.tracking import run_log
from onnx_release.errors import ReportRefused
from onnx_release.records import BenchmarkReport, CheckReport, LatencyReport, OnnxArtifact, ParityReport


class OnnxParityLatencyOperator(MeasuringStepOperator):
    """Compares the outputs of both sides, times both sides, and returns a passed `BenchmarkReport`.

    :param check: the `CheckReport` of the same artifact.
    """

    template_fields: Sequence[str] = (*MeasuringStepOperator.template_fields, "check")
    ui_color = "#fef9c3"

    def __init__(self, *, check: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check = check

    def release(self, run: StepRun) -> BenchmarkReport:
        """Compare and time.

        :raises ReportRefused: with every failed gate.
        """
        from onnx_release.report.acceptance import report_failures
        from onnx_release.run_step import benchmark

        artifact = run.evidence["artifact"] = params.record(OnnxArtifact, self.artifact, "tune")
        run.evidence["check"] = params.record(CheckReport, self.check, "check")
        with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
            options = self.benchmark_options(run, self.release_inputs(run), Path(scratch))
            with (
                staging.open_staging(artifact.staging_uri).local_folder(artifact) as folder,
                worker_cache.trained_model(run.hook, run.trained_model.model_uri, artifact.trained_sha256) as trained,
            ):
                report = benchmark(trained.path, folder, artifact, options)
            run.evidence["benchmark"] = report
            self._log_parity(report.parity)
            if report.latency:
                self._log_latency(report.latency)
            if not report.passed:
                run_log.log_reproduction(run.hook, run.trained_model, Path(scratch, "reproduction"))
                raise ReportRefused(
                    f"The artifact {artifact.sha256}",
                    f"did not pass: {'; '.join(report_failures(None, report))}",
                    "The report on the training run has every figure.",
                    code="benchmark_failed",
                )
        return report

    def _log_parity(self, parity: ParityReport) -> None:
        for c in parity.comparisons:
            verdict = "passed" if c.passed else "; ".join(c.failures)
            mae = c.measures.texts()["mae"]
            self.log.info("parity %s, %s, batch %d: MAE %s, %s", c.output, c.sample, c.batch_size, mae, verdict)
        for output, worst in parity.worst_columns().items():
            self.log.info(
                "parity %s: worst %s (%s, batch %d)", output, worst.worst_column, worst.sample, worst.batch_size
            )
        for warning in parity.warnings:
            self.log.warning("parity: %s", warning)
        for note in parity.notes:
            self.log.info("parity: %s", note)
        if at := parity.divergence:
            where = f"node {at.node} ({at.op_type}) of module '{at.module}'"
            self.log.error("The difference begins at %s, MAE %s. %s", where, at.mae, at.note or "")

    def _log_latency(self, latency: LatencyReport) -> None:
        for b in latency.batches:
            self.log.info(
                "batch %d: PyTorch p50 %.3f ms, ONNX Runtime p50 %.3f ms, speedup %.2f [%.2f, %.2f]",
                b.batch_size,
                b.reference.p50_ms,
                b.candidate.p50_ms,
                b.speedup,
                b.speedup_low,
                b.speedup_high,
            )
        for warning in latency.warnings:
            self.log.warning("%s", warning)
