"""PyTorch against ONNX Runtime: the same numbers, and how much faster."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx import rendered, settings, staging
from airflow_onnx.operators.base import ReleaseOperator
from onnx_release import limits
from onnx_release.errors import Refused
from onnx_release.limits import LatencyBudget, MeasurePlan, ParityLimits
from onnx_release.records import BenchmarkReport, CheckReport, OnnxArtifact

if TYPE_CHECKING:
    from airflow.sdk import Context

    from onnx_release.judge import JudgeOptions


class ParityLatencyOperator(ReleaseOperator):
    """Compares and times both sides; returns a `BenchmarkReport` that passed, or fails with every reason.

    Give it a pool of one slot: two measurements at once on a host spoil each other.

    :param artifact: the `OnnxArtifact` that the export returned.
    :param check: the `CheckReport` of the same artifact.
    :param batch_sizes: the batch sizes to compare and time.
    :param parity: fields of `ParityLimits`, each a value or its JSON.
    :param budget: fields of `LatencyBudget`, likewise.
    :param plan: fields of `MeasurePlan`, likewise.
    """

    template_fields: Sequence[str] = (
        *ReleaseOperator.template_fields,
        "artifact",
        "check",
        "batch_sizes",
        "parity",
        "budget",
        "plan",
    )
    ui_color = "#fef9c3"

    def __init__(
        self,
        *,
        artifact: Any,
        check: Any,
        batch_sizes: Any = limits.BATCH_SIZES,
        parity: dict[str, Any] | None = None,
        budget: dict[str, Any] | None = None,
        plan: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.artifact = artifact
        self.check = check
        self.batch_sizes = batch_sizes
        self.parity = parity
        self.budget = budget
        self.plan = plan

    def release(self, context: Context) -> BenchmarkReport:
        """Measure, keep the report, raise last."""
        from onnx_release.judge import judge_artifact
        from onnx_release.report import reasons

        artifact = self.gathered["artifact"] = rendered.record(OnnxArtifact, self.artifact, "export")
        self.gathered["check"] = rendered.record(CheckReport, self.check, "check")
        options = self._options()
        folder = staging.staged(artifact.uri)
        with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
            trained = self.hook.download(self.training.model_uri, Path(scratch, "trained"))
            report = judge_artifact(trained, folder, artifact, options)
        self.gathered["benchmark"] = report
        self._log_figures(report)
        if not report.passed:
            why = "; ".join(reasons(None, report))
            raise Refused(f"artifact {artifact.sha256}", why, "The report on the training run shows every figure.")
        return report

    def _options(self) -> JudgeOptions:
        from onnx_release.judge import JudgeOptions

        return JudgeOptions(
            batch_sizes=rendered.integers(self.batch_sizes, "batch_sizes", 1, limits.BATCH_SIZE_MAX),
            limits=rendered.settings(ParityLimits, self.parity or {}),
            budget=rendered.settings(LatencyBudget, self.budget or {}),
            plan=rendered.settings(MeasurePlan, self.plan or {}),
            allow_pickle=settings.allow_pickle(),
        )

    def _log_figures(self, report: BenchmarkReport) -> None:
        for c in report.parity.comparisons:
            mae = "not measured" if c.mae is None else f"{c.mae:.2e}"
            verdict = "passed" if c.passed else "; ".join(c.failures)
            self.log.info("parity %s, %s, batch %d: MAE %s, %s", c.output, c.sample, c.batch_size, mae, verdict)
        for b in report.latency.batches if report.latency else ():
            self.log.info(
                "batch %d: PyTorch p50 %.3f ms, ONNX Runtime p50 %.3f ms, speedup %.2f [%.2f, %.2f]",
                b.batch_size,
                b.torch.p50_ms,
                b.onnxruntime.p50_ms,
                b.speedup,
                b.speedup_low,
                b.speedup_high,
            )
        for warning in report.latency.warnings if report.latency else ():
            self.log.warning("%s", warning)
