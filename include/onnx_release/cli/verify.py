"""Command ``onnx-release verify``: a released model against its record, and on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_release.cli import console, trained_source
from onnx_release.cli.outcome import ExitCode, Outcome
from onnx_release.cli.pem_file import read_pem
from onnx_release.cli.released_source import ReleasedSource, open_released
from onnx_release.errors import Refused
from onnx_release.records import FileDigest
from onnx_release.scratch import scratch_folder
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from onnx_release.provenance.signature import Trust

NAME = "verify"
HELP = "Verify a released model: hashes, signature, checks, and its outputs against PyTorch's stored ones."
_STYLES = {"passed": "good", "failed": "bad", "skipped": "dim"}


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    arguments.add_argument("model", help="models:/NAME/VERSION, models:/NAME@ALIAS, s3://BUCKET/PREFIX or a folder")
    arguments.add_argument("--sha256", help="the sha256 that the model must have")
    arguments.add_argument("--public-key", help="a PEM file: the model must be signed with its private half")
    arguments.add_argument("--roots", help="a PEM file with certificates: the model must be signed below one of them")
    trained_source.mlflow_source_argument(arguments)


def run(arguments: argparse.Namespace) -> Outcome:
    """Verify one model. Every check runs, also after a failed one."""
    from onnx_release.verification.verify_release import Expected, verify_release

    trust = _trust(arguments)
    with scratch_folder() as scratch:
        source = open_released(arguments.model, scratch / "released", arguments.source)
        found = _digests(source.folder)
        expected = Expected(
            tag_sha256=source.version.tags.get(tags.VERSION_SHA256, "") if source.version else None,
            sha256=arguments.sha256,
            trust=trust,
            found=found,
            runs_changed_files=True,
        )
        verified = verify_release(source.folder, source.report, source.artifact, expected)
    document = {
        "model": arguments.model,
        "version": source.version.version if source.version else None,
        "sha256": source.artifact.sha256,
        "runtime": verified.runtime,
        "max_abs": verified.max_abs,
        "checks": [check.to_dict() for check in verified.checks],
        "files": _files(source, found or ()),
    }
    failed, count = len(verified.failed), len(verified.checks)
    last = f"{source.name} is not the model that was released: {failed} of {count} checks failed."
    if verified.passed:
        last = f"{source.name} is the model that was released."
    return Outcome(
        code=ExitCode.PASSED if verified.passed else ExitCode.REFUSED,
        document=document,
        lines=lambda: [
            *console.table(
                ("result", "check", "detail"), [[one.verdict, one.name, one.detail] for one in verified.checks], _STYLES
            ),
            "",
            *console.paragraph(last),
        ],
    )


def _trust(arguments: argparse.Namespace) -> Trust | None:
    """Return the signers of the arguments, or None without one."""
    from onnx_release.provenance.signature import Trust

    found = {}
    for name in ("public_key", "roots"):
        path, option = getattr(arguments, name), f"--{name.replace('_', '-')}"
        if path is None:
            continue
        found[name] = read_pem(path, option)
    return Trust(name=" and ".join(f"--{name.replace('_', '-')}" for name in found), **found) if found else None


def _digests(folder: Path) -> tuple[FileDigest, ...] | None:
    """Return the digests of a folder's files, or None for one that the verification refuses by name."""
    from onnx_release.artifact.digests import describe_folder

    try:
        return describe_folder(folder)
    except Refused:
        return None


def _files(source: ReleasedSource, found: Sequence[FileDigest]) -> list[dict[str, Any]]:
    """Return one entry for each file: its digests, found and recorded. None is a missing file."""
    digests = {file.path: file.sha256 for file in found}
    recorded = {file.path: file.sha256 for file in source.artifact.files}
    return [
        {"path": path, "sha256": digests.get(path), "recorded_sha256": recorded.get(path)}
        for path in sorted(digests.keys() | recorded.keys())
    ]
