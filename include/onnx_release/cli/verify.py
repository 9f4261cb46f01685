"""Command ``onnx-release verify``: a released model against its record, and on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnx_release.cli import console, trained_source
from onnx_release.cli.measuring import wrong_argument
from onnx_release.cli.outcome import ExitCode, Outcome
from onnx_release.cli.released_source import ReleasedSource, open_released
from onnx_release.errors import Refused, shorten
from onnx_release.limits import SIGNATURE_FILE
from onnx_release.records import TensorSpec
from onnx_release.scratch import scratch_folder
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from onnx_release.provenance.signature import Trust

NAME = "verify"
HELP = "Verify a released model: hashes, signature, checks, and its outputs against PyTorch's stored ones."
_PEM_MAX_BYTES = 2**20
_PEM_ACTION = "Give the path of a PEM file."
_STYLES = {"passed": "good", "failed": "bad", "skipped": "dim"}

Verdict = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class _Check:
    """Result of one check."""

    name: str
    verdict: Verdict
    detail: str


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    arguments.add_argument("model", help="models:/NAME/VERSION, models:/NAME@ALIAS, s3://BUCKET/PREFIX or a folder")
    arguments.add_argument("--sha256", help="the sha256 that the model must have")
    arguments.add_argument("--public-key", help="a PEM file: the model must be signed with its private half")
    arguments.add_argument("--roots", help="a PEM file with certificates: the model must be signed below one of them")
    trained_source.mlflow_source_argument(arguments)


def run(arguments: argparse.Namespace) -> Outcome:
    """Verify one model. Every check runs, also after a failed one."""
    trust = _trust(arguments)
    with scratch_folder() as scratch:
        source = open_released(arguments.model, scratch / "released", arguments.source)
        checks = list(_checks(source, arguments.sha256, trust))
        files = _files(source)
    failed = [check for check in checks if check.verdict == "failed"]
    document = {
        "model": arguments.model,
        "version": source.version.version if source.version else None,
        "sha256": source.artifact.sha256,
        "checks": [{"name": one.name, "verdict": one.verdict, "detail": one.detail} for one in checks],
        "files": files,
    }
    last = f"{source.name} is not the model that was released: {len(failed)} of {len(checks)} checks failed."
    if not failed:
        last = f"{source.name} is the model that was released."
    return Outcome(
        code=ExitCode.REFUSED if failed else ExitCode.PASSED,
        document=document,
        lines=lambda: [
            *console.table(
                ("result", "check", "detail"), [[one.verdict, one.name, one.detail] for one in checks], _STYLES
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
        try:
            with Path(path).open("rb") as file:
                found[name] = file.read(_PEM_MAX_BYTES).decode("ascii")
        except (OSError, ValueError) as error:
            raise wrong_argument(option, f"cannot be read: {shorten(error)}", _PEM_ACTION) from error
        if "-----BEGIN " not in found[name]:
            raise wrong_argument(option, f"is {path:.200}, which is not a PEM file", _PEM_ACTION)
    return Trust(name=" and ".join(f"--{name.replace('_', '-')}" for name in found), **found) if found else None


def _checks(source: ReleasedSource, sha256: str | None, trust: Trust | None) -> Iterator[_Check]:
    yield from _identity(source, sha256)
    yield _tried("files", lambda: _same_files(source))
    yield _tried("signature", lambda: _signature(source))
    if trust is not None:
        yield _tried("signed", lambda: _signed(source, trust))
    yield _tried("checker", lambda: _static(source))
    yield _tried("loads", lambda: _runs(source))
    yield _tried("reference", lambda: _reference(source))


def _tried(name: str, check: Callable[[], tuple[Verdict, str]]) -> _Check:
    try:
        return _Check(name, *check())
    except Refused as refusal:
        return _Check(name, "failed", f"{refusal.subject} {refusal.problem}")


def _identity(source: ReleasedSource, sha256: str | None) -> Iterator[_Check]:
    """Compare the digest of the record with the tag of the version and with the argument."""
    own, status = source.artifact.sha256, source.report.status
    yield _Check("report", "passed" if status == "accepted" else "failed", f"the release was {status}")
    if source.version:
        tag = source.version.tags.get(tags.VERSION_SHA256, "")
        verdict: Verdict = "passed" if tag == own else "failed"
        yield _Check("tag", verdict, f"{tags.VERSION_SHA256} is {tag or 'missing'}")
    if sha256 is not None:
        is_same = sha256.lower() == own
        yield _Check("sha256", "passed" if is_same else "failed", own if is_same else f"{own}, not {sha256:.80}")


def _same_files(source: ReleasedSource) -> tuple[Verdict, str]:
    from onnx_release.artifact.digests import require_bytes

    require_bytes(source.folder, source.artifact)
    return "passed", f"{len(source.artifact.files)} files, sha256 {source.artifact.sha256}"


def _signature(source: ReleasedSource) -> tuple[Verdict, str]:
    from onnx_release.trained.mlflow_model import read_signature

    found, recorded = read_signature(source.folder), (source.artifact.inputs, source.artifact.outputs)
    shown = ["; ".join(f"{_specs(side)}" for side in sides) for sides in (found, recorded)]
    if shown[0] != shown[1]:
        return "failed", f"MLmodel has {shown[0]}, and the record has {shown[1]}"
    return "passed", shown[0]


def _specs(specs: tuple[TensorSpec, ...]) -> str:
    """Return tensors as text. A dimension that varies is -1, and its name does not count."""
    return ", ".join(
        f"{spec.name} {spec.dtype} [{', '.join(str(n) if isinstance(n, int) else '-1' for n in spec.shape)}]"
        for spec in specs
    )


def _signed(source: ReleasedSource, trust: Trust) -> tuple[Verdict, str]:
    from onnx_release.provenance.signature import verify

    verify(source.folder, trust)
    return "passed", f"{SIGNATURE_FILE} is valid for {trust.name}"


def _static(source: ReleasedSource) -> tuple[Verdict, str]:
    from onnx_release.check.static_checks import CheckOptions, check_artifact

    domains = source.report.check.domains if source.report.check else ()
    report = check_artifact(source.folder, source.artifact, CheckOptions(allowed_domains=domains))
    # The check of the files has its own line.
    errors = [one.message for one in report.findings if one.severity == "error" and one.code != "bytes"]
    if errors:
        return "failed", "; ".join(errors)
    return "passed", f"{report.node_count} nodes, opset {report.opset}, IR version {report.ir_version}"


def _runs(source: ReleasedSource) -> tuple[Verdict, str]:
    from importlib.metadata import version

    from onnx_release.check.smoke_test import smoke_test

    smoke_test(source.folder, source.artifact)
    return "passed", f"ONNX Runtime {version('onnxruntime')} runs its example"


def _reference(source: ReleasedSource) -> tuple[Verdict, str]:
    """Compare with PyTorch's stored outputs, within the limits of the release."""
    from onnx_release.limits import MODEL_FILE, ParityLimits
    from onnx_release.parity.stored_reference import compare_stored
    from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
    from onnx_release.samples.reference import read_reference

    cases = read_reference(source.folder)
    if cases is None:
        return "skipped", "the release stored no outputs of PyTorch"
    benchmark = source.report.benchmark
    limits = ParityLimits.from_dict(benchmark.parity.limits) if benchmark else ParityLimits()
    options = OnnxRuntimeOptions(session_options=source.artifact.session_options)
    with OnnxRuntimeRunner(source.folder / MODEL_FILE, options) as runner:
        found = compare_stored(runner, cases, limits)
    if found.failures:
        return "failed", "; ".join(found.failures)
    largest = [one.measures.max_abs for one in found.compared if one.decides and one.measures.max_abs is not None]
    return "passed", f"{len(cases)} samples agree with PyTorch, largest difference {max(largest, default=0.0):.3g}"


def _files(source: ReleasedSource) -> list[dict[str, Any]]:
    """Return one entry for each file: its digests, found and recorded. None is a missing file."""
    from onnx_release.artifact.digests import describe_folder

    try:
        found = {file.path: file.sha256 for file in describe_folder(source.folder)}
    except Refused:
        found = {}
    recorded = {file.path: file.sha256 for file in source.artifact.files}
    return [
        {"path": path, "sha256": found.get(path), "recorded_sha256": recorded.get(path)}
        for path in sorted(found.keys() | recorded.keys())
    ]
