"""Tags of a model version: a few facts for the registry's list. `report.json` has everything else."""

from __future__ import annotations

from onnx_release.records import LatencyReport, OnnxArtifact, ReleaseReport
from onnx_release.training_runs import tags

# Until its alias is decided.
REGISTERED = "registered"


def version_tags(report: ReleaseReport, artifact: OnnxArtifact, status: str = REGISTERED) -> dict[str, str]:
    """Return the tags of the version of a released artifact.

    :param status: the state of the release.
    """
    from onnx_release.report.numbers import size_text

    latency = report.benchmark.latency if report.benchmark else None
    # Runtimes and layouts of an earlier release of the same bytes stay true.
    runtimes = [one.version for one in report.benchmark.runtimes if one.passed] if report.benchmark else []
    of_serving = {tags.VERSION_RUNTIMES: ", ".join(runtimes)} if runtimes else {}
    if report.serving:
        of_serving[tags.VERSION_SERVING] = ", ".join(layout.uri for layout in report.serving)
    return of_serving | {
        tags.VERSION_STATUS: status,
        tags.VERSION_SHA256: artifact.sha256,
        tags.VERSION_SIZE: size_text(artifact.size_bytes),
        tags.VERSION_OPSET: str(artifact.opset),
        tags.VERSION_PRECISION: str(artifact.precision),
        tags.VERSION_SPEED: _speed(latency) if latency else "not measured",
        tags.VERSION_TRAINING_RUN: report.trained_model.training_run_id,
        tags.VERSION_DAG_RUN: report.dag_run_url or "",
    }


def _speed(latency: LatencyReport) -> str:
    """Return the speedup at the serving batch size."""
    from onnx_release.report.gates import published_speedup

    size = latency.budget.get("batch_size")
    found = (published_speedup(batch, latency) for batch in latency.batches if batch.batch_size == size)
    return next((f"{speedup} at batch {size}" for speedup in found), "not measured")
