"""Command ``onnx-release compare``: two released models, their contract, outputs, speed and size."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_release.cli import console, measuring, trained_source
from onnx_release.cli.outcome import ExitCode, Outcome
from onnx_release.cli.released_source import ReleasedSource, open_released
from onnx_release.errors import CommandRefused
from onnx_release.scratch import scratch_folder
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from onnx_release.benchmark.compare_artifacts import ArtifactComparison
    from onnx_release.records import ParityReport
    from onnx_release.report.comparison import Comparison

NAME = "compare"
HELP = "Compare two released models: contract, outputs on the same inputs, speed in the same rounds, size."
_STYLES = {"same": "good", "differs": "note"}


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    arguments.add_argument("before", help="models:/NAME/VERSION, models:/NAME@ALIAS, s3://BUCKET/PREFIX or a folder")
    arguments.add_argument("after", help="the later model, in the same form")
    trained_source.mlflow_source_argument(arguments)
    arguments.add_argument("--no-latency", action="store_true", help="measure no latency")
    arguments.add_argument("--same-outputs", action="store_true", help="refuse outputs that differ beyond the limits")
    arguments.add_argument("--not-slower", action="store_true", help="refuse a model that is not shown to be as fast")
    measuring.add_arguments(arguments)


def run(arguments: argparse.Namespace) -> Outcome:
    """Compare two models."""
    from onnx_release.benchmark.compare_artifacts import CompareOptions, ReleasedModel, compare_artifacts
    from onnx_release.latency.host_lock import LockOptions
    from onnx_release.report.comparison import compare, measured_speeds

    if arguments.not_slower and arguments.no_latency:
        raise measuring.wrong_argument("--not-slower", "needs a measurement", "Omit --no-latency.")
    limits, budget, plan = measuring.given_limits(arguments.limit)
    options = CompareOptions(
        batch_sizes=measuring.batch_sizes(arguments.batch_sizes),
        limits=limits,
        plan=None if arguments.no_latency else plan,
        # The measurement ends when the interval of the ratio does not contain 1.
        budget=budget.replace(speedup_min=1.0, speedup_goal=1.0),
        inputs_path=str(arguments.inputs.resolve()) if arguments.inputs else None,
        lock=LockOptions(path=str(arguments.lock.resolve()) if arguments.lock else None, holder="onnx-release"),
    )
    with scratch_folder() as scratch:
        before, after = (
            _opened(uri, scratch / side, arguments.source)
            for uri, side in ((arguments.before, "before"), (arguments.after, "after"))
        )
        models = [ReleasedModel(source.folder, source.artifact) for source in (before, after)]
        found = compare_artifacts(models[0], models[1], options)
    speeds = measured_speeds(found.latency, options.budget.batch_size)
    compared = compare(before.report, after.report, _names(before, after), speeds)
    slow = [speed for speed in speeds.rows if speed.ratio.verdict in ("slower", "not settled")]
    is_refused = (
        bool(found.contract or found.problem)
        or (arguments.same_outputs and found.parity is not None and not found.parity.passed)
        or (arguments.not_slower and bool(slow))
    )
    return Outcome(
        code=ExitCode.REFUSED if is_refused else ExitCode.PASSED,
        document=_document(before, after, found, compared),
        lines=lambda: _lines(_names(before, after), found, compared),
    )


def _opened(uri: str, scratch: Path, sources: list[str]) -> ReleasedSource:
    source = open_released(uri, scratch, sources)
    tag = source.version.tags.get(tags.VERSION_SHA256) if source.version else source.artifact.sha256
    if tag != source.artifact.sha256:
        raise CommandRefused(
            f"The model {uri:.200}",
            f"has the tag {tags.VERSION_SHA256} {tag}, and its record has {source.artifact.sha256}",
            f"Verify it: onnx-release verify {uri:.200}.",
            code="no_release",
        )
    return source


def _names(before: ReleasedSource, after: ReleasedSource) -> tuple[str, str]:
    """Return different names, such as ``A (out)``, because two folders may share one."""
    if before.name == after.name:
        return f"A ({before.name})", f"B ({after.name})"
    return before.name, after.name


def _document(
    before: ReleasedSource, after: ReleasedSource, found: ArtifactComparison, compared: Comparison
) -> dict[str, object]:
    return {
        "before": _model(before),
        "after": _model(after),
        "contract": list(found.contract),
        "problem": found.problem,
        "sentence": compared.sentence,
        "outputs": found.parity.to_dict() if found.parity else None,
        "latency": [batch.to_dict() for batch in found.latency],
        "host": found.host.to_dict() if found.host else None,
        "differences": [
            {"name": row.name, "before": row.before, "after": row.after, "verdict": row.verdict}
            for row in compared.rows
        ],
        "equal": list(compared.equal),
    }


def _model(source: ReleasedSource) -> dict[str, object]:
    artifact = source.artifact
    return {
        "name": source.name,
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
        "opset": artifact.opset,
        "precision": str(artifact.precision),
    }


def _lines(names: tuple[str, str], found: ArtifactComparison, compared: Comparison) -> Iterator[str]:
    rows = [[row.name, row.before, row.after, row.verdict] for row in compared.rows]
    if rows:
        yield from console.table(("", *names, ""), rows)
        yield ""
    if found.parity:
        yield from _output_lines(found.parity)
        yield ""
    if compared.equal:
        yield from console.paragraph(f"Equal: {', '.join(compared.equal)}.")
    if found.contract:
        yield from console.paragraph(f"The contract differs: {'; '.join(found.contract)}.")
    elif found.problem:
        yield from console.paragraph(f"The outputs cannot be compared: {found.problem}")
    yield from console.paragraph(f"{compared.sentence} {compared.trust}".strip())


def _output_lines(parity: ParityReport) -> list[str]:
    """Return a table of the worst differences by output."""
    from onnx_release.report.numbers import three_digits

    failed = {one.output for one in parity.comparisons if one.decides and not one.passed}
    rows = [
        [
            "differs" if output in failed else "same",
            output,
            three_digits(worst.mae),
            three_digits(worst.max_abs),
            three_digits(worst.agreement),
        ]
        for output, worst in parity.worst_per_output().items()
    ]
    return console.table(("within limits", "output", "MAE", "largest", "agreement"), rows, _STYLES)
