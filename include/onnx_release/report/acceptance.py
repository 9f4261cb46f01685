"""Acceptance of an artifact: the one decision about whether its bytes may ship."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_release.records import (
    BenchmarkReport,
    ChampionComparison,
    CheckReport,
    LatencyReport,
    OnnxArtifact,
    ParityReport,
    RuntimeReport,
)
from onnx_release.report.gates import gate_sentence, gates

_Measured = ParityReport | RuntimeReport | LatencyReport | ChampionComparison
_Part = CheckReport | BenchmarkReport | _Measured


def acceptance(
    artifact: OnnxArtifact | None, check: CheckReport | None, benchmark: BenchmarkReport | None
) -> tuple[str, ...]:
    """Return the reasons why an artifact may not ship; without a reason it is accepted.

    An artifact is accepted only when check, parity and latency exist, passed, and belong to its sha256, and when no
    gate refuses. A benchmark that was not to be timed needs no latency.
    """
    refused = [gate for gate in gates(check, benchmark) if gate.verdict == "refused"]
    found = (*report_failures(check, benchmark), *_gaps(artifact, check, benchmark))
    return found or tuple(gate_sentence(gate) for gate in refused)


def report_failures(check: CheckReport | None, benchmark: BenchmarkReport | None) -> tuple[str, ...]:
    """Return the failures in these reports; a missing report adds none."""
    found: list[str] = []
    if check is not None:
        found += [
            f"check {finding.code}: {finding.message}" for finding in check.findings if finding.severity == "error"
        ]
        found += _unnamed("check", check, found)
    if benchmark is not None:
        failures: list[str] = []
        parts: list[tuple[str, _Measured | None]] = [("parity", benchmark.parity)]
        parts += [(f"ONNX Runtime {report.version}", report) for report in benchmark.runtimes]
        parts += [("latency", benchmark.latency), ("champion", benchmark.champion)]
        for name, part in parts:
            if part is not None:
                named = [f"{name}: {failure}" for failure in part.failures]
                failures += [*named, *_unnamed(name, part, named)]
        found += [*failures, *_unnamed("benchmark", benchmark, failures)]
    return tuple(found)


def _unnamed(name: str, report: _Part, failures: list[str]) -> list[str]:
    return [] if report.passed or failures else [f"the {name} did not pass and names no failure"]


def _gaps(artifact: OnnxArtifact | None, check: CheckReport | None, benchmark: BenchmarkReport | None) -> Iterator[str]:
    if artifact is None:
        yield "nothing was exported"
    parts: dict[str, _Part | None] = {"check": check, "benchmark": benchmark}
    if benchmark is not None:
        parts["parity"] = benchmark.parity
        # A model that failed parity is not timed.
        if benchmark.latency is not None or (benchmark.timed and benchmark.parity.passed):
            parts["latency"] = benchmark.latency
        parts |= {f"ONNX Runtime {one.version}": one for one in benchmark.runtimes}
        if benchmark.champion is not None:
            parts["champion"] = benchmark.champion
    for name, report in parts.items():
        if report is None:
            yield f"there is no {name} report"
        elif artifact is not None and report.sha256 != artifact.sha256:
            yield f"the {name} report belongs to {report.sha256}, not to {artifact.sha256}"
