"""The evidence of one release: as JSON beside the model, as text for a person, as metrics for MLflow."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from onnx_release.errors import Refused
from onnx_release.limits import REPORT_FILE
from onnx_release.records import (
    BatchLatency,
    BenchmarkReport,
    CheckReport,
    Divergence,
    LatencyReport,
    Measures,
    OnnxArtifact,
    OutputParity,
    ParityReport,
    ReleaseReport,
    TrainedModel,
    TuneCandidate,
    TuneReport,
)

SCHEMA_VERSION = 1
METRIC_ROOT = "onnx_release"


def reasons(check: CheckReport | None, benchmark: BenchmarkReport | None) -> tuple[str, ...]:
    """Return every reason that these reports give to refuse the artifact; a step that has no report gives none."""
    found: list[str] = []
    if check is not None:
        errors = [f"check {f.code}: {f.message}" for f in check.findings if f.severity == "error"]
        found += errors or ([] if check.passed else ["the check did not pass, and names no error"])
    if benchmark is not None:
        judged = [f"parity: {why}" for why in benchmark.parity.failures]
        judged += [f"latency: {why}" for why in (benchmark.latency.failures if benchmark.latency else ())]
        found += judged or ([] if benchmark.passed else ["the benchmark did not pass, and names no failure"])
    return tuple(found)


def build_report(
    model_name: str,
    training: TrainedModel,
    artifact: OnnxArtifact | None,
    check: CheckReport | None,
    benchmark: BenchmarkReport | None,
) -> ReleaseReport:
    """Gather the records of a release; it is accepted only when every step passed, on the same bytes, and was timed."""
    found = [*reasons(check, benchmark), *_gaps(artifact, check, benchmark)]
    return ReleaseReport(
        schema_version=SCHEMA_VERSION,
        status="refused" if found else "accepted",
        reasons=tuple(found),
        model_name=model_name,
        training=training,
        artifact=artifact,
        check=check,
        benchmark=benchmark,
    )


def _gaps(artifact: OnnxArtifact | None, check: CheckReport | None, benchmark: BenchmarkReport | None) -> Iterator[str]:
    if artifact is None:
        yield "nothing was exported"
    for name, report in (("check", check), ("benchmark", benchmark)):
        if report is None:
            yield f"there is no {name} report"
        elif artifact is not None and report.sha256 != artifact.sha256:
            yield f"the {name} report is about {report.sha256}, not {artifact.sha256}"
    if benchmark is not None and benchmark.passed and not (benchmark.parity.passed and benchmark.latency is not None):
        yield "the benchmark says that it passed, without parity or without a latency"


def write_report(folder: Path, report: ReleaseReport) -> Path:
    """Write `REPORT_FILE` into `folder` and return its path; equal reports give equal bytes, and it appears whole."""
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
    """Read what `write_report` wrote; raises `Refused` when it is missing, broken, or of another schema."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"report {path.name}", f"cannot be read: {error}", "Release the training run again.") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise Refused(
            f"report {path.name}",
            f"has schema version {version!r}, and this release reads {SCHEMA_VERSION}",
            "Read it with the version that wrote it, or release the training run again.",
        )
    return ReleaseReport.from_dict(data)


def metrics(report: ReleaseReport) -> dict[str, float]:
    """Return the figures under MLflow metric names below ``onnx_release/``: per output the worst, per batch size all.

    What was not measured, or is not finite, has no metric.
    """
    found: dict[str, float | None] = {}
    if report.artifact is not None:
        found["size_bytes"] = report.artifact.size_bytes
        found["export_wall_s"] = report.artifact.export_wall_s
        found |= _tuning_metrics(report.artifact.tuning)
    if report.benchmark is not None:
        for output, worst in report.benchmark.parity.worst_per_output().items():
            found |= {f"parity/{_metric_part(output)}/{name}": value for name, value in worst.to_dict().items()}
        for batch in report.benchmark.latency.batches if report.benchmark.latency else ():
            found |= {f"latency/batch_{batch.batch_size}/{name}": value for name, value in _batch_metrics(batch)}
    return {
        f"{METRIC_ROOT}/{name}": float(value)
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }


def _tuning_metrics(tuning: TuneReport | None) -> dict[str, float | None]:
    if tuning is None:
        return {}
    speedups = {f"tune/{_metric_part(c.name)}/speedup": c.speedup for c in tuning.candidates}
    return {"tune/wall_s": tuning.wall_s} | speedups


def _metric_part(output: str) -> str:
    """Replace what MLflow allows in no metric name, and the slash, which would look like another level."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", output)


def _batch_metrics(batch: BatchLatency) -> Iterator[tuple[str, float | None]]:
    for side, latency in (("reference", batch.reference), ("candidate", batch.candidate)):
        yield f"{side}_p50_ms", latency.p50_ms
        yield f"{side}_p95_ms", latency.p95_ms
        yield f"{side}_cpu_p50_ms", latency.cpu_p50_ms
        yield f"{side}_throughput_per_s", latency.throughput_per_s
    yield "speedup", batch.speedup
    yield "speedup_low", batch.speedup_low
    yield "speedup_high", batch.speedup_high
    yield "cpu_wait_share", batch.cpu_wait_share


def summary_markdown(report: ReleaseReport) -> str:
    """Describe the release for a person: the verdict and why, what was exported, parity per output, speed per batch."""
    blocks = [f"**{report.model_name}**: {report.status}", "\n".join(f"- {why}" for why in report.reasons)]
    blocks.append(_training_line(report.training))
    if report.artifact is not None:
        blocks.append(_artifact_text(report.artifact))
        if report.artifact.tuning is not None:
            blocks.append("\n".join(tuning_lines(report.artifact.tuning)))
    if report.benchmark is not None:
        blocks.append(_parity_table(report.benchmark.parity))
        blocks.append(_latency_text(report.benchmark.latency))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _training_line(training: TrainedModel) -> str:
    name = f" ({training.run_name})" if training.run_name else ""
    chosen = f" ({training.chosen})" if training.chosen else ""
    return f"Training run `{training.training_run_id}`{name}, model `{training.model_uri}`{chosen}."


def _artifact_text(artifact: OnnxArtifact) -> str:
    lines = [
        f"Opset {artifact.opset}, IR version {artifact.ir_version}, {artifact.size_bytes / 1e6:.1f} MB, "
        f"from {artifact.trained_format} by the strategy {artifact.strategy}, {_precision(artifact)}, "
        f"sha256 `{artifact.sha256}`."
    ]
    failed = [attempt for attempt in artifact.attempts if attempt.outcome != "taken"]
    items = [f"- strategy {a.strategy}: {a.outcome}, {_cell(a.reason)}" for a in failed]
    for finding in artifact.findings:
        fix = f"; mended by `{finding.fix}`" if finding.fix else ""
        items.append(f"- {finding.severity} {finding.code}: {_cell(finding.message)}{fix}")
    return "\n".join([*lines, *([""] if items else []), *items])


def _precision(artifact: OnnxArtifact) -> str:
    exact = "exact" if artifact.precision.is_exact else f"**{artifact.precision}**"
    return f"{exact}, variant {artifact.variant}" if artifact.variant else exact


def tuning_lines(tuning: TuneReport) -> list[str]:
    """Return the table of a tuning, line by line, as Markdown: every candidate, its figures, and what became of it."""
    metrics = [f"{name} of {output}" for output, name in tuning.task_metric.items()]
    columns = ["candidate", "outcome", "speedup [interval]", "p50 / p95 ms", "MB", "cosine", "SQNR", *metrics, "why"]
    return [
        f"Tuning at batch {tuning.batch_size} with {tuning.threads} threads chose **{tuning.chosen}**, in "
        f"{tuning.wall_s:.0f} s of at most {tuning.max_s:g}. Speedups are to the plain export, `float32`, at "
        f"{tuning.confidence:.0%}.",
        "",
        f"| {' | '.join(map(_cell, columns))} |",
        f"|{'---|' * len(columns)}",
        *(_tuning_row(candidate, tuple(tuning.task_metric)) for candidate in tuning.candidates),
        *(["", *(f"- {note}" for note in tuning.notes)] if tuning.notes else []),
    ]


def _tuning_row(candidate: TuneCandidate, outputs: tuple[str, ...]) -> str:
    ratio = (candidate.speedup, candidate.speedup_low, candidate.speedup_high)
    speedup = "-" if None in ratio else "{:.2f} [{:.2f}, {:.2f}]".format(*ratio)
    times = "-" if candidate.p50_ms is None else f"{candidate.p50_ms:.3g} / {candidate.p95_ms:.3g}"
    measures = candidate.measures.texts()
    cells = [
        candidate.name,
        candidate.outcome,
        speedup,
        times,
        "-" if candidate.size_bytes is None else f"{candidate.size_bytes / 1e6:.1f}",
        measures["cosine"],
        measures["sqnr_db"],
        *(
            "-" if output not in candidate.task_metrics else f"{candidate.task_metrics[output]:.4g}"
            for output in outputs
        ),
        candidate.reason,
    ]
    return f"| {' | '.join(map(_cell, cells))} |"


def _parity_table(parity: ParityReport) -> str:
    failed = {c.output for c in parity.comparisons if not c.passed}
    sizes = ", ".join(map(str, parity.batch_sizes)) or "none"
    unseen = ", ".join(map(str, parity.unseen_batch_sizes)) or "none"
    lines = [
        f"Parity with PyTorch, the worst of {_samples(parity.comparisons)} at batch sizes {sizes} "
        f"(not seen at export: {unseen}):",
        "",
        f"| output | {' | '.join(info.title or name for name, info in Measures.model_fields.items())} | passed |",
        f"|{'---|' * (len(Measures.model_fields) + 2)}",
    ]
    for output, worst in parity.worst_per_output().items():
        measures = " | ".join(worst.texts().values())
        lines.append(f"| {_cell(output)} | {measures} | {'no' if output in failed else 'yes'} |")
    if parity.notes:
        lines += ["", *(f"- {note}" for note in parity.notes)]
    if parity.divergence is not None:
        lines += ["", _divergence_line(parity.divergence)]
    return "\n".join(lines)


def _divergence_line(at: Divergence) -> str:
    module = f" of module `{at.module}` ({at.module_type})" if at.module else ""
    node = f"node `{at.node}` ({at.op_type}){module}" if at.node else "no node"
    error = "" if at.mae is None else f", MAE {at.mae:.2e}"
    scale = "" if at.scale is None else f" at a scale of {at.scale:.2e}"
    note = f" Seen there: {at.note}." if at.note else ""
    return f"The difference begins at {node}{error}{scale}, on sample '{at.sample}' at batch {at.batch_size}.{note}"


def _samples(comparisons: tuple[OutputParity, ...]) -> str:
    return f"{len({(c.sample, c.batch_size) for c in comparisons})} samples"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _latency_text(latency: LatencyReport | None) -> str:
    if latency is None:
        return "Latency was not measured, because parity failed."
    lines = [
        f"Latency on {latency.device}, {latency.threads} threads a side, {latency.host.cpu_model} "
        f"({latency.host.usable_cpus} of {latency.host.logical_cpus} CPUs, load {latency.host.load_1m:.2f} at the "
        f"start), {', '.join(latency.providers_active)}; verdict: {latency.verdict}"
        f"{', goal reached' if latency.goal_reached else ''}.",
        "",
        "| batch | PyTorch p50 / p95 ms | ONNX Runtime p50 / p95 ms | samples/s | speedup [interval] | rounds |",
        "|---|---|---|---|---|---|",
        *map(_latency_row, latency.batches),
    ]
    if latency.warnings:
        lines += ["", *(f"- warning: {warning}" for warning in latency.warnings)]
    return "\n".join(lines)


def _latency_row(batch: BatchLatency) -> str:
    reference, candidate = batch.reference, batch.candidate
    speedup = f"{batch.speedup:.2f} [{batch.speedup_low:.2f}, {batch.speedup_high:.2f}] at {batch.confidence:.0%}"
    return (
        f"| {batch.batch_size} | {reference.p50_ms:.3g} / {reference.p95_ms:.3g} "
        f"| {candidate.p50_ms:.3g} / {candidate.p95_ms:.3g} "
        f"| {reference.throughput_per_s:.4g} / {candidate.throughput_per_s:.4g} "
        f"| {speedup}{'' if batch.conclusive else ' (uncertain)'} | {batch.rounds} x {batch.calls_per_round} |"
    )
