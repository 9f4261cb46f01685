"""Command ``onnx-release rehearse``: released models in other versions of ONNX Runtime, before an upgrade."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_release.cli import console, measuring, serving_folder, trained_source
from onnx_release.cli.outcome import ExitCode, Outcome
from onnx_release.cli.released_source import open_released
from onnx_release.errors import CommandRefused, ReleaseError
from onnx_release.limits import REPORT_FILE, TARGET_RUNTIME_MAX_S
from onnx_release.records.rehearsal import RehearsalReport, RehearsedModel
from onnx_release.scratch import scratch_folder

if TYPE_CHECKING:
    from onnx_release.rehearsal.rehearse import OpenedRuntime, RehearsalOptions

NAME = "rehearse"
HELP = "Rehearse an upgrade: released models in other versions of ONNX Runtime, beside the present one."
_STYLES = {
    "bit-equal": "good",
    "within limits": "good",
    "changes": "note",
    "not rehearsed": "note",
    "does not run": "bad",
    "does not load": "bad",
}
_MODELS_MAX = 1000
_log = logging.getLogger(__name__)


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    arguments.add_argument(
        "models",
        metavar="model",
        nargs="+",
        help="models:/NAME/VERSION, models:/NAME@ALIAS, s3://BUCKET/PREFIX, a folder of one model, or one of several",
    )
    arguments.add_argument(
        "--runtimes",
        metavar="RUNTIME",
        nargs="+",
        required=True,
        help="versions such as 1.20.1, a requirement such as 'onnxruntime>=1.20,<1.24', or paths of environments",
    )
    arguments.add_argument("--no-latency", action="store_true", help="measure no latency")
    arguments.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=measuring.whole_number(1, 86400),
        default=int(TARGET_RUNTIME_MAX_S),
        help="the longest run of one model in one runtime; default: %(default)s",
    )
    arguments.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=Path,
        help="write the report as HTML, Markdown and JSON into this folder",
    )
    arguments.add_argument("--lock", metavar="FILE", type=Path, help="lock of this host while times are measured")
    serving_folder.add_runtimes_folder(arguments)
    trained_source.mlflow_source_argument(arguments)


def run(arguments: argparse.Namespace) -> Outcome:
    """Rehearse every model in every runtime. A failure of one is a result, and the others go on."""
    from onnx_release.latency.host_lock import LockOptions
    from onnx_release.rehearsal import rehearse, runtimes

    uris = list(_uris(arguments.models))
    chosen = runtimes.choose_runtimes(arguments.runtimes, paths_allowed=True)
    _log.info("Preparing ONNX Runtime %s.", ", ".join(one.name for one in chosen))
    opened = rehearse.open_runtimes(chosen, serving_folder.runtimes_folder(arguments))
    options = rehearse.RehearsalOptions(
        plan=None if arguments.no_latency else rehearse.PLAN,
        lock=LockOptions(path=str(arguments.lock.resolve()) if arguments.lock else None, holder="onnx-release"),
        timeout_s=float(arguments.timeout),
    )
    report = RehearsalReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        present=rehearse.present_version(),
        runtimes=tuple(one.name for one in chosen),
        models=tuple(_rehearsed(uri, opened, options, arguments.source) for uri in uris),
    )
    return _outcome(report, arguments.output)


def _uris(given: Sequence[str]) -> Iterator[str]:
    """Yield the models. A folder without a report stands for the releases in it."""
    for uri in given:
        folder = Path(uri)
        if "://" in uri or ":/" in uri or not folder.is_dir() or (folder / REPORT_FILE).exists():
            yield uri
            continue
        found = sorted(path.parent for path in folder.glob(f"*/{REPORT_FILE}"))
        if not found or len(found) > _MODELS_MAX:
            raise CommandRefused(
                f"The folder {uri!r:.200}",
                f"has {len(found)} folders with a release",
                f"Name a folder with 1 to {_MODELS_MAX} folders of onnx-release export.",
                code="no_release",
            )
        yield from map(str, found)


def _rehearsed(
    uri: str, opened: Sequence[OpenedRuntime], options: RehearsalOptions, sources: Sequence[str]
) -> RehearsedModel:
    from onnx_release.rehearsal.rehearse import ReleasedFolder, present_version, rehearse_model

    with scratch_folder() as scratch:
        try:
            source = open_released(uri, scratch / "released", sources)
        except ReleaseError as error:  # The results of the other models stay.
            return RehearsedModel(name=uri, present=present_version(), problem=f"{error.subject} {error.problem}")
        model = ReleasedFolder.of_report(source.name, source.folder, source.artifact, source.report)
        return rehearse_model(model, opened, options)


def _outcome(report: RehearsalReport, folder: Path | None) -> Outcome:
    """Return the outcome: a runtime that could not be prepared counts after a model that does not pass."""
    from onnx_release.report.rehearsal import is_ready, write_rehearsal

    results = [one for model in report.models for one in model.runtimes]
    code = ExitCode.PASSED if is_ready(report) else ExitCode.REFUSED
    if code and all(model.runtimes for model in report.models) and results:
        others = [one for one in results if one.verdict != "not rehearsed"]
        if all(one.verdict in ("bit-equal", "within limits") and one.reference != "failed" for one in others):
            code = ExitCode.UNAVAILABLE
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_rehearsal(folder, report)
    return Outcome(code=code, document=report.to_dict(), lines=lambda: _lines(report))


def _lines(report: RehearsalReport) -> Iterator[str]:
    from onnx_release.report.rehearsal import COLUMNS, rehearsal_rows, remarks, runtime_sentence

    yield from console.table(COLUMNS, list(rehearsal_rows(report)), _STYLES)
    yield ""
    for text in remarks(report):
        yield from console.paragraph(text, indent="  ", first="- ")
    for runtime in report.runtimes:
        yield from console.paragraph(runtime_sentence(report, runtime))
