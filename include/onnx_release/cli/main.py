"""Entry of the command `onnx-release`: parser, errors and exit codes."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from onnx_release.cli import compare, console, doctor, export, plan, rehearse, trace, verify
from onnx_release.cli.outcome import ExitCode, Outcome
from onnx_release.errors import CommandRefused, ParameterRefused, Refused, ReleaseError, TrainingRunRefused
from onnx_release.machine_faults import machine_failure
from onnx_release.text import shorten

_EXIT_CODES = """\
exit codes:
  0    passed
  1    refused: the model or the version does not pass
  2    wrong command line, or it names a model that does not exist
  3    a server or this machine is at fault; try again
  4    unexpected error; --debug prints its frames
  130  interrupted
"""
_COMMANDS = (export, doctor, verify, compare, rehearse, plan, trace)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: The command line without the program. None: that of the process.
    """
    options = parser().parse_args(arguments)
    with console.reserved_stdout(), _quiet_libraries(), _terminable():
        outcome = _outcome(options)
    if options.json:
        head = {"command": options.command, "exit_code": int(outcome.code)}
        text = json.dumps(head | outcome.document, indent=2, ensure_ascii=False)
    else:
        text = "\n".join(outcome.lines())
    if text:
        console.write(sys.stdout, f"{text}\n")
    return int(outcome.code)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="onnx-release",
        description="Release PyTorch models as ONNX, without Airflow.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document")
    common.add_argument("-q", "--quiet", action="store_true", help="print no progress")
    common.add_argument("--debug", action="store_true", help="print the frames of an unexpected error")
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        added = commands.add_parser(
            command.NAME,
            help=command.HELP,
            description=command.HELP,
            parents=[common],
            epilog=_EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return found


def _outcome(options: argparse.Namespace) -> Outcome:
    """Run the command. Its errors become outcomes."""
    with console.progress(is_quiet=options.quiet) as progress:
        try:
            result: Outcome = options.run(options)
        except KeyboardInterrupt:
            progress.clear()
            console.write(sys.stderr, "Interrupted. Nothing was written.\n")
            return Outcome(code=ExitCode.INTERRUPTED)
        except Exception as error:  # noqa: BLE001 - a model's code and the libraries can raise anything
            progress.clear()
            if options.debug:
                traceback.print_exc()
            return _failure(error)
        return result


def _failure(error: Exception) -> Outcome:
    """Return the outcome of an error, and print the error to stderr as one block."""
    code, failure = _classified(error)
    # A library's message may have several lines.
    lines = console.paragraph(f"onnx-release: {' '.join(str(failure).split())}")
    console.write(sys.stderr, "\n".join(lines) + "\n")
    return Outcome(code=code, document={"error": failure.to_dict()})


def _classified(error: Exception) -> tuple[ExitCode, ReleaseError]:
    found = machine_failure(error) or error
    if isinstance(found, Refused):
        code = (
            ExitCode.USAGE
            if isinstance(found, CommandRefused | ParameterRefused | TrainingRunRefused)
            else ExitCode.REFUSED
        )
        return ExitCode.UNAVAILABLE if found.is_of_deployment else code, found
    if isinstance(found, ReleaseError):
        return ExitCode.UNAVAILABLE, found
    if isinstance(found, ImportError):
        action = 'Install them: pip install "airflow-onnx-release[core]".'
        return ExitCode.UNAVAILABLE, ReleaseError("The Python environment", f"lacks packages: {found}", action)
    problem = f"met an unexpected error: {type(found).__name__}: {shorten(found)}"
    return ExitCode.UNEXPECTED, ReleaseError("The command", problem, "Report it with the output of --debug.")


@contextmanager
def _terminable() -> Iterator[None]:
    """End as for Ctrl-C when a service manager ends the process, so that temporary folders are removed."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # A thread has no signals.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Hide the warnings of libraries, and MLflow's progress bars. An outage is reported within seconds."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    root = logging.getLogger()
    before = root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.setLevel(before)


if __name__ == "__main__":
    raise SystemExit(main())
