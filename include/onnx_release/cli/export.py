"""Command ``onnx-release export``: a tested ONNX folder with its report from one model.

The folder appears when it is complete and accepted. A refused model leaves its reports in ``FOLDER.refused``.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_release import limits
from onnx_release.cli import console, evidence, measuring, serving_folder, trained_source
from onnx_release.cli.outcome import ExitCode, Outcome
from onnx_release.cli.serving_folder import ServingFolder
from onnx_release.cli.trained_source import TrainedSource
from onnx_release.errors import CommandRefused, ParameterRefused, Refused, ReportRefused
from onnx_release.records import (
    BenchmarkReport,
    CheckReport,
    Gate,
    OnnxArtifact,
    Precision,
    ReleaseReport,
    TrainedModel,
)
from onnx_release.scratch import scratch_folder
from onnx_release.text import printable

if TYPE_CHECKING:
    from onnx_release.benchmark.setup import BenchmarkOptions

NAME = "export"
HELP = "Export a PyTorch model to a folder with the ONNX model, and test it as a release does."
_STYLES = {"passed": "good", "refused": "bad"}


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    trained_source.add_arguments(arguments)
    arguments.add_argument("-o", "--output", metavar="FOLDER", required=True, type=Path, help="the folder to write")
    arguments.add_argument("--overwrite", action="store_true", help="replace an earlier folder of this command")
    arguments.add_argument("--device", choices=("cpu", "cuda", "auto"), default="cpu", help="default: cpu")
    arguments.add_argument("--no-latency", action="store_true", help="measure no latency")
    measuring.add_arguments(arguments)
    arguments.add_argument(
        "--single-file-max-bytes",
        metavar="N",
        type=measuring.whole_number(0, limits.PROTO_MAX_BYTES),
        default=limits.SINGLE_FILE_MAX_BYTES,
        help="weights up to this size are in model.onnx itself; 0: always beside it; default: %(default)s",
    )
    arguments.add_argument(
        "--reference-max-bytes",
        metavar="N",
        type=measuring.whole_number(0, limits.REFERENCE_MAX_BYTES_LIMIT),
        default=limits.REFERENCE_MAX_BYTES,
        help="size of the inputs and PyTorch's outputs that are stored for verify; 0: none; default: %(default)s",
    )
    arguments.add_argument("--tune", action="store_true", help="search a faster variant")
    arguments.add_argument(
        "--precision",
        choices=[str(precision) for precision in Precision],
        action="append",
        default=[],
        help="a precision that may ship, with --tune; may be repeated; default: exact",
    )
    arguments.add_argument("--tune-max-s", type=float, default=limits.TUNE_MAX_S, help="longest tuning in seconds")
    arguments.add_argument(
        "--evaluation", metavar="NPZ", type=measuring.existing_file, help="inputs and targets for the task metric"
    )
    arguments.add_argument(
        "--allow-domain", metavar="NAME", action="append", default=[], help="allow operators of this domain"
    )
    serving_folder.add_arguments(arguments)
    evidence.add_arguments(arguments)


@dataclass(slots=True)
class _Found:
    """Records of an export so far."""

    trained: TrainedModel
    artifact: OnnxArtifact | None = None
    check: CheckReport | None = None
    benchmark: BenchmarkReport | None = None

    def report(self, refusal: Refused | None = None) -> ReleaseReport:
        from onnx_release.report.release_report import build_report

        return build_report(self.trained, self.artifact, self.check, self.benchmark, refusal)


def run(arguments: argparse.Namespace) -> Outcome:
    """Export and test one model."""
    from onnx_release.artifact.digests import fresh_folder

    target: Path = arguments.output
    _require_free(target, may_replace=arguments.overwrite)
    refused = target.with_name(f"{target.name}.refused")
    _require_free(refused, may_replace=True)
    if arguments.precision and not arguments.tune:
        raise measuring.wrong_argument("--precision", "needs --tune", "Add --tune.")
    serving_folder.require_arguments(arguments)
    serving = ServingFolder.beside(arguments)
    if arguments.serving_layout:
        _require_free(serving.path, is_own=serving.is_own, may_replace=arguments.overwrite)
    key = evidence.signing_key(arguments)
    found = _Found(_trained_model(arguments.model))
    with scratch_folder() as scratch:
        try:
            with fresh_folder(target) as folder:
                source = trained_source.open_source(arguments, scratch)
                _release(arguments, source, (scratch, folder), found)
                report = found.report()
                if report.artifact:
                    report = report.replace(serving=serving.write(folder, report.artifact))
                _write_reports(folder, report)
                evidence.write(folder, report, key)
        except (CommandRefused, ParameterRefused):
            raise
        except Refused as refusal:
            if refusal.is_of_deployment:
                raise
            with fresh_folder(refused) as folder:
                report = _write_reports(folder, found.report(trained_source.for_command(refusal)))
                if (bundle := scratch / "reproduction").is_dir():
                    shutil.copytree(bundle, folder / "reproduction")
            return _outcome(report, refused, ExitCode.REFUSED)
    if refused.exists():
        shutil.rmtree(refused)
    return _outcome(report, target, ExitCode.PASSED)


def _release(arguments: argparse.Namespace, source: TrainedSource, folders: tuple[Path, Path], found: _Found) -> None:
    """Export into the second folder, check and compare.

    Raises:
        Refused: A step refuses the model.
    """
    from onnx_release.check.static_checks import CheckOptions, check_artifact
    from onnx_release.run_step import benchmark, compare, export

    scratch, folder = folders
    options = measuring.benchmark_options(arguments, source.options)
    options = options.replace(
        reproduction_folder=str(scratch / "reproduction"), target_runtimes=serving_folder.environments(arguments)
    )
    exporting = source.options.replace(
        device=arguments.device,
        single_file_max_bytes=arguments.single_file_max_bytes,
        reference_max_bytes=arguments.reference_max_bytes,
        inputs_path=options.inputs_path,
        evaluation_path=_path(arguments.evaluation),
    )
    found.artifact = artifact = export(source.path, folder, exporting)
    ServingFolder.beside(arguments).require_servable(artifact)
    if arguments.tune:
        found.artifact = artifact = _tuned(arguments, source, folders, options, artifact)
    domains = CheckOptions(allowed_domains=tuple(arguments.allow_domain))
    found.check = check = check_artifact(folder, artifact, domains)
    if check.passed and arguments.no_latency:
        parity = compare(source.path, folder, artifact, options)
        found.benchmark = BenchmarkReport(
            sha256=artifact.sha256, passed=parity.passed, timed=False, parity=parity, latency=None
        )
    elif check.passed:
        found.benchmark = benchmark(source.path, folder, artifact, options)
    if reasons := found.report().reasons:
        code = "benchmark_failed" if check.passed else "check_failed"
        raise ReportRefused("The model", f"did not pass: {'; '.join(reasons)}", "Read its report.", code=code)


def _tuned(
    arguments: argparse.Namespace,
    source: TrainedSource,
    folders: tuple[Path, Path],
    benchmark: BenchmarkOptions,
    artifact: OnnxArtifact,
) -> OnnxArtifact:
    from onnx_release.run_step import tune
    from onnx_release.tuning.options import TuneOptions, require_precision

    scratch, folder = folders
    precisions = tuple(Precision(one) for one in arguments.precision or [Precision.EXACT])
    options = TuneOptions(
        benchmark=benchmark,
        precisions=precisions,
        max_s=arguments.tune_max_s,
        opset=arguments.opset,
        evaluation=_path(arguments.evaluation),
        allowed_domains=tuple(arguments.allow_domain),
        single_file_max_bytes=arguments.single_file_max_bytes,
    )
    tuned = tune(source.path, folder, artifact, scratch / "tuned", options)
    require_precision(tuned, precisions)
    if tuned.variant:
        shutil.rmtree(folder)
        shutil.move(scratch / "tuned", folder)
    return tuned


def _path(file: Path | None) -> str | None:
    return str(file.resolve()) if file else None


def _require_free(target: Path, *, may_replace: bool, is_own: Callable[[], bool] | None = None) -> None:
    """Refuse an output that is another program's, or that may not be replaced."""
    if not target.name or target.name == "..":
        raise measuring.wrong_argument(
            "--output", f"is {str(target)!r:.200}, which names no new folder", "Name a folder."
        )
    if not target.is_symlink() and not target.exists():
        return
    if not (is_own() if is_own else _is_ours(target)):
        problem, action = "exists, and this command did not write it", "Name another folder."
    elif not may_replace:
        problem, action = "exists", "Name another folder, or replace it by --overwrite."
    else:
        return
    raise CommandRefused(f"The output {str(target)!r:.200}", problem, action, code="output_exists")


def _is_ours(folder: Path) -> bool:
    """Return True for a folder with a release report and no file that its artifact does not list."""
    from onnx_release.artifact.digests import describe_folder
    from onnx_release.report.release_report import read_report

    try:
        report = read_report(folder / limits.REPORT_FILE)
        found = {file.path for file in describe_folder(folder)}
    except Refused:
        return False
    own = {file.path for file in report.artifact.files} if report.artifact else set()
    return all(path in own | limits.REPORTS or path.startswith("reproduction/") for path in found)


def _trained_model(model: str) -> TrainedModel:
    run = re.match(r"runs:/([^/]+)/", model)
    # A path is of this machine; its last part identifies the model.
    uri = model if ":/" in model else Path(model).resolve().name
    return TrainedModel(training_run_id=run[1] if run else "", model_uri=uri)


def _write_reports(folder: Path, report: ReleaseReport) -> ReleaseReport:
    from onnx_release.report.html import write_page
    from onnx_release.report.markdown import summary_markdown
    from onnx_release.report.release_report import write_report

    write_report(folder, report)
    write_page(folder, report)
    (folder / limits.REPORT_SUMMARY).write_text(summary_markdown(report), encoding="utf-8", newline="\n")
    return report


def _outcome(report: ReleaseReport, folder: Path, code: ExitCode) -> Outcome:
    artifact = report.artifact
    document = {
        "status": report.status,
        "headline": report.headline,
        "next_step": report.next_step,
        "reasons": list(report.reasons),
        "reason_code": report.reason_code,
        "folder": str(folder),
        "serving": [layout.uri for layout in report.serving],
        "sha256": artifact.sha256 if artifact else None,
        "gates": [gate.to_dict() for gate in report.gates],
        "findings": [finding.to_dict() for finding in artifact.findings] if artifact else [],
    }
    return Outcome(code=code, document=document, lines=lambda: _lines(report, folder))


def _lines(report: ReleaseReport, folder: Path) -> Iterator[str]:
    if report.gates:
        yield from gate_lines(report.gates)
        yield ""
    if report.status == "refused" and not report.gates:
        # A refusal before the measurements has its next step in its text.
        for reason in report.reasons:
            yield from console.paragraph(f"Refused: {reason}")
    else:
        yield from console.paragraph(f"{report.headline} {report.next_step}".strip())
    if report.status == "accepted" and report.artifact:
        yield f"Folder  {printable(folder)}"
        yield from (f"{layout.layout:8}{printable(layout.uri)}" for layout in report.serving)
        yield f"sha256  {report.artifact.sha256}"
    else:
        yield f"Report  {printable(folder / limits.REPORT_PAGE)}"


def gate_lines(gates: tuple[Gate, ...]) -> list[str]:
    """Return the gates as a table with a heading."""
    from onnx_release.report.gates import TITLES
    from onnx_release.report.numbers import limit_text, measured_text

    rows = [
        [gate.verdict, gate.subject, TITLES.get(gate.name, gate.name), measured_text(gate), limit_text(gate)]
        for gate in gates
    ]
    return console.table(("verdict", "of", "measure", "measured", "limit"), rows, _STYLES)
