"""Release report: built from the records of a release, and stored as JSON beside the model."""

from __future__ import annotations

import json
import os
from pathlib import Path

from onnx_release.errors import Refused, ReportRefused
from onnx_release.limits import REPORT_FILE
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.records import BenchmarkReport, CheckReport, OnnxArtifact, ReleaseReport, TrainedModel
from onnx_release.records.release import SCHEMA_VERSION
from onnx_release.report.acceptance import acceptance, report_failures
from onnx_release.report.gates import gates, headline, next_step
from onnx_release.text import shorten


def build_report(
    trained_model: TrainedModel,
    artifact: OnnxArtifact | None,
    check: CheckReport | None,
    benchmark: BenchmarkReport | None,
    refusal: Refused | None = None,
) -> ReleaseReport:
    """Return the report of a release, with its gates and headline.

    Args:
        trained_model: The PyTorch model.
        artifact: The exported model, or None.
        check: The static checks, or None.
        benchmark: Parity and latency, or None.
        refusal: The refusal that ended the release. Its reasons are the failures in the reports, or else its own text.
            Without it, `acceptance` decides.
    """
    if refusal is None:
        reasons = acceptance(artifact, check, benchmark)
    else:
        reasons = report_failures(check, benchmark) or (str(refusal),)
    report = ReleaseReport(
        status="refused" if reasons else "accepted",
        headline="",
        reasons=reasons,
        reason_code=refusal.code if refusal else None,
        gates=gates(check, benchmark),
        trained_model=trained_model,
        artifact=artifact,
        check=check,
        benchmark=benchmark,
    )
    return report.replace(headline=headline(report, refusal), next_step=next_step(report, refusal))


def write_report(folder: Path, report: ReleaseReport) -> Path:
    """Write `REPORT_FILE` into `folder` and return its path.

    Equal reports give equal bytes. The file appears only when it is complete.
    """
    text = json.dumps(report.to_dict(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    target = folder / REPORT_FILE
    half_done = folder / f".{REPORT_FILE}.{os.getpid()}"
    try:
        half_done.write_text(text, encoding="utf-8", newline="\n")
        half_done.replace(target)
    finally:
        half_done.unlink(missing_ok=True)
    return target


def read_report(path: Path) -> ReleaseReport:
    """Read the output of `write_report`.

    Raises:
        ReportRefused: when the file is missing, is not JSON, or has another schema version.
        RecordRefused: when a field is missing, unknown or of another type.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise_machine_failure(error)
        raise ReportRefused(
            f"The report {path.name}",
            f"cannot be read: {shorten(error)}",
            "Release the training run again.",
            code="unreadable_report",
        ) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ReportRefused(
            f"The report {path.name}",
            f"has the schema version {version!r}, and this program reads version {SCHEMA_VERSION}",
            "Read it with the program that wrote it, or release the training run again.",
            code="other_schema_version",
        )
    return ReleaseReport.from_dict(data)
