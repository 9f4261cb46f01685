"""Command ``onnx-release doctor``: every reason why a release would refuse a model.

The command exports the model to a temporary folder, checks it and compares it with PyTorch. It measures no latency, and
it uploads and registers nothing. The tags and params of the training run count as in a release.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_release.cli import console, trained_source
from onnx_release.cli.outcome import ExitCode, Outcome
from onnx_release.cli.trained_source import TrainedSource
from onnx_release.errors import Refused
from onnx_release.records import Finding
from onnx_release.scratch import scratch_folder

if TYPE_CHECKING:
    from onnx_release.records import OnnxArtifact

NAME = "doctor"
HELP = "List the reasons why a PyTorch model cannot be released as ONNX."
_INDENT = " " * 9
_STYLES = {"error": "bad", "warning": "note", "info": "dim"}


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    trained_source.add_arguments(arguments)


def run(arguments: argparse.Namespace) -> Outcome:
    """Examine one model."""
    with scratch_folder() as scratch:
        source = trained_source.open_source(arguments, scratch)
        findings = list(_examine(source, scratch / "onnx"))
    errors = sum(finding.severity == "error" for finding in findings)
    last = "No error was found. Latency was not measured."
    if errors:
        last = f"A release would refuse this model: {errors} error{'s' if errors > 1 else ''}."
    return Outcome(
        code=ExitCode.REFUSED if errors else ExitCode.PASSED,
        document={"findings": [finding.to_dict() for finding in findings]},
        lines=lambda: [*(line for finding in findings for line in finding_lines(finding)), "", last],
    )


def _examine(source: TrainedSource, folder: Path) -> Iterator[Finding]:
    from onnx_release.export.diagnostics import refusal_finding
    from onnx_release.report.numbers import size_text
    from onnx_release.run_step import export

    try:
        artifact = export(source.path, folder, source.options)
        size = f"opset {artifact.opset}, {size_text(artifact.size_bytes)}"
        message = f"The strategy '{artifact.strategy}' wrote the ONNX model ({size})"
        yield Finding(severity="info", code="exported", message=message)
        yield from artifact.findings
        yield from _check_and_compare(source, folder, artifact)
    except Refused as refusal:
        yield from (refusal_finding(trained_source.for_command(fault)) for fault in refusal.faults or (refusal,))


def _check_and_compare(source: TrainedSource, folder: Path, artifact: OnnxArtifact) -> Iterator[Finding]:
    from onnx_release.benchmark.setup import BenchmarkOptions
    from onnx_release.check.static_checks import CheckOptions, check_artifact
    from onnx_release.run_step import compare

    yield from (f for f in check_artifact(folder, artifact, CheckOptions()).findings if f.severity != "info")
    options = source.options
    benchmark = BenchmarkOptions(
        allow_pickle=options.allow_pickle, factory=options.factory, input_spec=options.input_spec
    )
    parity = compare(source.path, folder, artifact, benchmark)
    for failure in parity.failures:
        yield Finding(severity="error", code="parity", message=failure)
    if origin := parity.divergence:
        node = f"The outputs first differ at node '{origin.node}' ({origin.op_type}) of module '{origin.module}'"
        yield Finding(severity="info", code="divergence", message=f"{node}. {origin.note}".strip())
    if parity.passed:
        sizes = ", ".join(map(str, parity.batch_sizes))
        message = f"ONNX Runtime and PyTorch agree at the batch sizes {sizes}"
        yield Finding(severity="info", code="parity", message=message)


def finding_lines(finding: Finding) -> list[str]:
    """Return a finding as text. The fix of an error is a sentence; other fixes are code and are not wrapped."""
    first, *lines = console.paragraph(f"{finding.severity:<8} {finding.code}: {finding.message}", _INDENT, first="")
    word = console.styled(finding.severity, _STYLES[finding.severity])
    lines.insert(0, first.replace(finding.severity, word, 1))
    if finding.fix:
        is_sentence = finding.severity == "error"
        lines += console.paragraph(finding.fix, _INDENT) if is_sentence else [f"{_INDENT}{finding.fix}"]
    return lines
