"""Metrics of a release for its training run in MLflow."""

from __future__ import annotations

import math
import re

from onnx_release.records import BatchLatency, ReleaseReport

METRIC_ROOT = "onnx_release"


def release_metrics(report: ReleaseReport) -> dict[str, float]:
    """Return the metrics under MLflow names below ``onnx_release/``.

    Parity has the worst value of each measure per output, latency every value per batch size. A value that is missing
    or not finite has no metric.
    """
    found: dict[str, float | None] = {}
    if report.artifact is not None:
        found["size_bytes"] = report.artifact.size_bytes
        found["export_wall_s"] = report.artifact.export_wall_s
        if (tuning := report.artifact.tuning) is not None:
            found["tune/wall_s"] = tuning.wall_s
            found |= {f"tune/{_name_part(v.name)}/speedup": v.speedup for v in tuning.variants}
    if report.benchmark is not None:
        for output, worst in report.benchmark.parity.worst_per_output().items():
            found |= {f"parity/{_name_part(output)}/{name}": value for name, value in worst.to_dict().items()}
        for batch in report.benchmark.latency.batches if report.benchmark.latency else ():
            found |= {f"latency/batch_{batch.batch_size}/{name}": value for name, value in _batch(batch).items()}
    return {
        f"{METRIC_ROOT}/{name}": float(value)
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }


def _name_part(name: str) -> str:
    """Replace characters that MLflow refuses in metric names, and the slash, which would start another level."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _batch(batch: BatchLatency) -> dict[str, float | None]:
    sides = {"reference": batch.reference, "candidate": batch.candidate}
    return {f"{side}_{name}": value for side, record in sides.items() for name, value in record.to_dict().items()} | {
        "speedup": batch.speedup,
        "speedup_low": batch.speedup_low,
        "speedup_high": batch.speedup_high,
        "cpu_wait_share": batch.cpu_wait_share,
    }
