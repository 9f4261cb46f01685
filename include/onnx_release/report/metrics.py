"""Metrics and verdicts of a release for MLflow."""

from __future__ import annotations

import math
import re

from onnx_release.records import BatchLatency, ColumnParity, ReleaseReport, SideLatency
from onnx_release.report.gates import is_settled

METRIC_ROOT = "onnx_release"


def release_metrics(report: ReleaseReport) -> dict[str, float]:
    """Return the metrics under MLflow names below ``onnx_release/``.

    Parity has the worst value of each measure per output, latency every value per batch size. A value that is missing
    or not finite has no metric. A speedup that is not settled has only its lower bound.
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
        for output, comparison in report.benchmark.parity.worst_columns().items():
            if (column := comparison.worst_column) is not None:
                found |= {f"parity/{_name_part(output)}/worst_column/{name}": v for name, v in _column(column).items()}
        if (latency := report.benchmark.latency) is not None:
            for batch in latency.batches:
                values = _batch(batch, is_settled=is_settled(batch, latency))
                found |= {f"latency/batch_{batch.batch_size}/{name}": value for name, value in values.items()}
    return {
        f"{METRIC_ROOT}/{name}": float(value)
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }


def release_verdicts(report: ReleaseReport) -> dict[str, str]:
    """Return the latency verdict, and ``settled`` or ``not settled`` for each batch size, by names like the metrics."""
    if report.benchmark is None or (latency := report.benchmark.latency) is None:
        return {}
    batches = {
        f"{METRIC_ROOT}/latency/batch_{batch.batch_size}/verdict": "settled"
        if is_settled(batch, latency)
        else "not settled"
        for batch in latency.batches
    }
    return {f"{METRIC_ROOT}/latency/verdict": latency.verdict, **batches}


def _name_part(name: str) -> str:
    """Replace characters that MLflow refuses in metric names, and the slash, which would start another level."""
    part = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    return part if part.strip(".") else f"_{part}"


def _column(column: ColumnParity) -> dict[str, float | None]:
    names = ("index", "mae", "scale", "sqnr_db", "share")
    return {name: getattr(column, name) for name in names}


def _scalars(side: SideLatency) -> list[tuple[str, float]]:
    return [(name, value) for name, value in side.to_dict().items() if not isinstance(value, list)]


def _batch(batch: BatchLatency, *, is_settled: bool) -> dict[str, float | None]:
    sides = {"reference": batch.reference, "candidate": batch.candidate}
    return {f"{side}_{name}": value for side, record in sides.items() for name, value in _scalars(record)} | {
        "speedup": batch.speedup if is_settled else None,
        "speedup_low": batch.speedup_low,
        "speedup_high": batch.speedup_high if is_settled else None,
        "cpu_wait_share": batch.cpu_wait_share,
    }
