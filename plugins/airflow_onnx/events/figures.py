"""Headline figures of a released model, for asset events, notifications and metrics."""

from __future__ import annotations

from typing import Self

from onnx_release.records import ReleaseReport
from onnx_release.records.base import Record


class Figures(Record):
    """Size, parity and speed of a released model.

    Attributes:
        size_bytes: The size of the artifact.
        precision: ``exact``, or the reduced precision of a tuned model.
        mae: The largest mean absolute difference of an output from PyTorch.
        batch_size: The serving batch size. The figures below are those of this size.
        speed_verdict: The verdict on the latency.
        speedup: PyTorch's median time over ONNX Runtime's; None for a speed that is not settled.
        speedup_low: The lower end of its interval.
        speedup_high: The upper end of its interval; None for a speed that is not settled.
        p50_ms: ONNX Runtime's median time per call.
        p95_ms: Its 95th percentile.
    """

    size_bytes: int | None = None
    precision: str | None = None
    mae: float | None = None
    batch_size: int | None = None
    speed_verdict: str | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None

    @classmethod
    def of_report(cls, report: ReleaseReport) -> Self:
        """Return the figures of a report; those that were not measured are None."""
        from onnx_release.report.metrics import METRIC_ROOT, release_metrics

        size_bytes = precision = mae = verdict = batch_size = None
        if report.artifact:
            size_bytes, precision = report.artifact.size_bytes, str(report.artifact.precision)
        if report.benchmark:
            worst = report.benchmark.parity.worst_per_output().values()
            mae = max((measures.mae for measures in worst if measures.mae is not None), default=None)
        if report.benchmark and (latency := report.benchmark.latency):
            verdict, batch_size = latency.verdict, latency.budget.get("batch_size")
        values = release_metrics(report)
        batch = f"{METRIC_ROOT}/latency/batch_{batch_size}"
        return cls(
            size_bytes=size_bytes,
            precision=precision,
            mae=mae,
            batch_size=batch_size,
            speed_verdict=verdict,
            **{name: values.get(f"{batch}/{name}") for name in ("speedup", "speedup_low", "speedup_high")},
            **{name: values.get(f"{batch}/candidate_{name}") for name in ("p50_ms", "p95_ms")},
        )
