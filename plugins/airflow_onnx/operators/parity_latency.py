"""Operator of the comparison and the latency measurement of PyTorch and ONNX Runtime."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow_onnx import params
from airflow_onnx.log_lines import wrapped
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
        for output, worst in parity.worst_per_output().items():
            mae, largest = (worst.texts()[name] for name in ("mae", "max_abs"))
            self.log.info("Parity of %s: MAE %s, largest difference %s.", output, mae, largest)
        for output, found in parity.worst_columns().items():
            place = f"on '{found.sample}' at batch {found.batch_size}"
            self._log_wrapped(logging.INFO, f"Worst column of {output} {place}: {found.worst_column}")
        for warning in parity.warnings:
            self._log_wrapped(logging.WARNING, f"Parity: {warning}")
        for note in parity.notes:
            self._log_wrapped(logging.INFO, f"Parity: {note}")
        if at := parity.divergence:
            where = f"node {at.node} ({at.op_type}) of module '{at.module}'" if at.node else "no single node"
            mae = "" if at.mae is None else f", MAE {at.mae:.2e}"
            self._log_wrapped(logging.WARNING, f"The difference begins at {where}{mae}. {at.note or ''}")

    def _log_latency(self, latency: LatencyReport) -> None:
        from onnx_release.report.numbers import speedup_text, three_digits

        for b in latency.batches:
            sides = [three_digits(side.p50_ms) for side in (b.reference, b.candidate)]
            speedup = speedup_text(b.speedup, b.speedup_low, b.speedup_high)
            settled = "" if b.conclusive else ", not settled"
            self.log.info("Batch %d: PyTorch %s ms, ONNX Runtime %s ms, %s%s.", b.batch_size, *sides, speedup, settled)
        for warning in latency.warnings:
            self._log_wrapped(logging.WARNING, warning)

    def _log_wrapped(self, level: int, text: str) -> None:
        for line in wrapped(text):
            self.log.log(level, "%s", line)
