"""PyTorch against ONNX Runtime: the same numbers, and how much faster."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx import evidence, rendered, settings, staging
from airflow_onnx.operators.base import ReleaseOperator
from airflow_onnx.sources import Source, fetch_inputs
from onnx_release import limits
from onnx_release.errors import Refused
from onnx_release.limits import LatencyBudget, MeasurePlan, ParityLimits
from onnx_release.records import BenchmarkReport, CheckReport, OnnxArtifact

if TYPE_CHECKING:
    from airflow.sdk import Context

    from onnx_release.subject import JudgeOptions


class ParityLatencyOperator(ReleaseOperator):
    """Compares and times both sides; returns a `BenchmarkReport` that passed, or fails with every reason.

    Give it a pool of one slot: two measurements at once on a host spoil each other.

    :param artifact: the `OnnxArtifact` that the export returned.
    :param check: the `CheckReport` of the same artifact.
    :param batch_sizes: the batch sizes to compare and time.
    :param parity: fields of `ParityLimits`, each a value or its JSON.
    :param budget: fields of `LatencyBudget`, likewise.
    :param plan: fields of `MeasurePlan`, likewise.
    :param source: as in the export.
    :param inputs_uri: an ``.npz`` file of inputs to compare and time with (``s3://…``, ``runs:/…``), or empty.
    :param s3_conn_id: an Airflow connection of type `aws`, for such a file.
    """

    template_fields: Sequence[str] = (
        *ReleaseOperator.template_fields,
        "artifact",
        "check",
        "batch_sizes",
        "parity",
        "budget",
        "plan",
        "source",
        "inputs_uri",
        "s3_conn_id",
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
        source: dict[str, Any] | None = None,
        inputs_uri: str = "",
        s3_conn_id: str = "minio_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.artifact = artifact
        self.check = check
        self.batch_sizes = batch_sizes
        self.parity = parity
        self.budget = budget
        self.plan = plan
        self.source = source
        self.inputs_uri = inputs_uri
        self.s3_conn_id = s3_conn_id

    def release(self, context: Context) -> BenchmarkReport:
        """Measure, keep the report, raise last."""
        from onnx_release.child import judge_artifact
        from onnx_release.report import reasons

        artifact = self.gathered["artifact"] = rendered.record(OnnxArtifact, self.artifact, "export")
        self.gathered["check"] = rendered.record(CheckReport, self.check, "check")
        folder = staging.staged(artifact.uri)
        with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
            options = self._options(Path(scratch))
            trained = self.hook.download(self.training.model_uri, Path(scratch, "trained"))
            report = judge_artifact(trained, folder, artifact, options)
            self.gathered["benchmark"] = report
            self._log_figures(report)
            if not report.passed:
                evidence.leave_reproduction(self.hook, self.training, self.model_name, Path(options.reproduction))
                why = "; ".join(reasons(None, report))
                raise Refused(f"artifact {artifact.sha256}", why, "The report on the training run shows every figure.")
        return report

    def _options(self, scratch: Path) -> JudgeOptions:
        from onnx_release.subject import JudgeOptions

        source = Source(self.hook, self.training, self.source or {})
        return JudgeOptions(
            batch_sizes=rendered.integers(self.batch_sizes, "batch_sizes", 1, limits.BATCH_SIZE_MAX),
            limits=rendered.settings(ParityLimits, self.parity or {}),
            budget=rendered.settings(LatencyBudget, self.budget or {}),
            plan=rendered.settings(MeasurePlan, self.plan or {}),
            allow_pickle=settings.allow_pickle(),
            factory=source.factory(),
            input_spec=source.input_spec(),
            given_inputs=fetch_inputs(self.hook, self.s3_conn_id, self.inputs_uri, scratch / "inputs"),
            reproduction=str(scratch / "reproduction"),
        )

    def _log_figures(self, report: BenchmarkReport) -> None:
        for c in report.parity.comparisons:
            mae = "not measured" if c.mae is None else f"{c.mae:.2e}"
            verdict = "passed" if c.passed else "; ".join(c.failures)
            self.log.info("parity %s, %s, batch %d: MAE %s, %s", c.output, c.sample, c.batch_size, mae, verdict)
        for note in report.parity.notes:
            self.log.info("parity: %s", note)
        if at := report.parity.divergence:
            where = f"node {at.node} ({at.op_type}) of module '{at.module}'"
            self.log.error("The difference begins at %s, MAE %s. %s", where, at.mae, at.note)
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
