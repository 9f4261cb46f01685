"""The bytes judged are the bytes shipped: what must hold before anything leaves the work folder."""

from __future__ import annotations

from onnx_release.errors import Refused
from onnx_release.records import BenchmarkReport, CheckReport, OnnxArtifact


def require_accepted(artifact: OnnxArtifact, check: CheckReport, benchmark: BenchmarkReport) -> None:
    """Raise `Refused`, naming all that is wrong, unless every report passed and speaks of this artifact."""
    wrong = []
    for name, report in (("check", check), ("parity", benchmark.parity), ("latency", benchmark.latency)):
        if report is None:
            wrong.append(f"{name} was not measured")
        elif report.sha256 != artifact.sha256:
            wrong.append(f"{name} speaks of {report.sha256[:16]}…, another artifact")
        elif not report.passed:
            wrong.append(f"{name} did not pass")
    if benchmark.sha256 != artifact.sha256 or not benchmark.passed:
        wrong.append("the benchmark as a whole did not pass for this artifact")
    if wrong:
        raise Refused(
            f"artifact {artifact.sha256}",
            "; ".join(wrong),
            "Clear the task 'check' with its downstream tasks and rerun.",
        )
