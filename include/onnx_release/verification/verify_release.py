"""Verification of one released folder against the report of its release. Every check runs, also after a failed one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from onnx_release.artifact.digests import describe_folder, folder_sha256, require_same_files
from onnx_release.check.smoke_test import run_example
from onnx_release.check.static_checks import CheckOptions, check_artifact
from onnx_release.errors import Refused
from onnx_release.limits import MODEL_FILE, SIGNATURE_FILE
from onnx_release.parity.limits import limits_of_release
from onnx_release.parity.stored_reference import compare_stored
from onnx_release.provenance.signature import Trust, verify
from onnx_release.records import FileDigest, OnnxArtifact, ReleaseReport, TensorSpec
from onnx_release.records.verification import CheckVerdict, VerificationCheck, VerificationReport
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner, runtime_version
from onnx_release.samples.reference import read_reference
from onnx_release.text import without_folders
from onnx_release.trained.mlflow_model import read_signature
from onnx_release.training_runs import tags

_Result = tuple[CheckVerdict, str]
_CHANGED = "the files differ from the record"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Facts from outside of the folder, which the folder is compared with.

    Attributes:
        tag_sha256: The sha256 in the tag of the version, empty for a version without the tag; None without a version.
        sha256: The sha256 that a person expects, else None.
        trust: The accepted signers; None if no signature is required.
        found: The digests of the files, if the caller has just taken them; else the folder is hashed.
        runs_changed_files: Run a model whose files differ from its record too, to find the outputs that differ.
    """

    tag_sha256: str | None = None
    sha256: str | None = None
    trust: Trust | None = None
    found: tuple[FileDigest, ...] | None = None
    runs_changed_files: bool = False


def verify_release(
    folder: Path, report: ReleaseReport, artifact: OnnxArtifact, expected: Expected | None = None
) -> VerificationReport:
    """Verify a released folder. Its model runs in this process.

    Args:
        folder: The folder, which is only read.
        report: The report of its release.
        artifact: The record of the artifact, from the report.
        expected: The facts to compare with.

    Raises:
        Transient: The machine failed. The folder may be right.
        Refused: A package or a key of this machine is missing, as `Refused.is_of_deployment` returns.
    """
    work = _Verification(folder, report, artifact, expected or Expected())
    try:
        checks = tuple(work.checks())
    finally:
        work.close()
    return VerificationReport(sha256=artifact.sha256, runtime=runtime_version(), checks=checks, max_abs=work.max_abs)


def without_report(problem: str) -> VerificationReport:
    """Return the result for a folder whose report is missing or cannot be used."""
    check = VerificationCheck(name="report", verdict="failed", detail=problem)
    return VerificationReport(sha256=None, runtime=runtime_version(), checks=(check,))


class _Verification:
    def __init__(self, folder: Path, report: ReleaseReport, artifact: OnnxArtifact, expected: Expected) -> None:
        self.folder, self.report, self.artifact, self.expected = folder, report, artifact, expected
        self.max_abs: float | None = None
        self._opened: OnnxRuntimeRunner | None = None

    def checks(self) -> Iterator[VerificationCheck]:
        own, status = self.artifact.sha256, self.report.status
        yield _check("report", status == "accepted", f"the release was {status}")
        if (tag := self.expected.tag_sha256) is not None:
            yield _check("tag", tag == own, f"{tags.VERSION_SHA256} is {tag or 'missing'}")
        if (wanted := self.expected.sha256) is not None:
            is_same = wanted.lower() == own
            yield _check("sha256", is_same, own if is_same else f"{own}, not {wanted:.80}")
        files = _tried("files", self._files)
        yield files
        trust = self.expected.trust
        is_changed = files.verdict == "failed"
        if is_changed and not self.expected.runs_changed_files:
            yield from (
                VerificationCheck(name=name, verdict="skipped", detail=_CHANGED)
                for name in ("signature", "checker", "loads", "reference")
            )
            return
        yield _tried("signature", self._tensors)
        if trust is not None:
            yield _tried("signed", lambda: self._signed(trust))
        yield _tried("checker", self._static)
        # The outputs of changed files prove nothing about the released model.
        yield _check("loads", False, _CHANGED) if is_changed else _tried("loads", self._runs)
        yield _tried("reference", self._reference)

    def close(self) -> None:
        """Close the session."""
        if self._opened:
            self._opened.__exit__()

    def _files(self) -> _Result:
        files = self.artifact.files
        found = self._found
        require_same_files("The folder", found, files)
        if (digest := folder_sha256(files)) != self.artifact.sha256:
            return "failed", f"the record has sha256 {self.artifact.sha256}, but its files give {digest}"
        return "passed", f"{len(files)} files, sha256 {digest}"

    @cached_property
    def _found(self) -> Sequence[FileDigest]:
        return describe_folder(self.folder) if self.expected.found is None else self.expected.found

    def _tensors(self) -> _Result:
        """Compare the signature in the MLflow model with the record."""
        found, recorded = read_signature(self.folder), (self.artifact.inputs, self.artifact.outputs)
        shown = ["; ".join(f"{_specs(side)}" for side in sides) for sides in (found, recorded)]
        if shown[0] != shown[1]:
            return "failed", f"MLmodel has {shown[0]}, and the record has {shown[1]}"
        return "passed", shown[0]

    def _signed(self, trust: Trust) -> _Result:
        verify(self.folder, trust)
        return "passed", f"{SIGNATURE_FILE} is valid for {trust.name}"

    def _static(self) -> _Result:
        domains = self.report.check.domains if self.report.check else ()
        # The files have their own line. The weights are the released ones, and their values are only warnings.
        options = CheckOptions(allowed_domains=domains, reads_files=False)
        report = check_artifact(self.folder, self.artifact, options)
        if errors := [one.message for one in report.findings if one.severity == "error"]:
            return "failed", "; ".join(errors)
        return "passed", f"{report.node_count} nodes, opset {report.opset}, IR version {report.ir_version}"

    def _runs(self) -> _Result:
        run_example(self._runner, self.folder, self.artifact)
        return "passed", f"ONNX Runtime {runtime_version()} runs its example"

    def _reference(self) -> _Result:
        """Compare with PyTorch's stored outputs, within the limits of the release."""
        cases = read_reference(self.folder)
        if cases is None:
            return "skipped", "the release stored no outputs of PyTorch"
        found = compare_stored(self._runner, cases, limits_of_release(self.report))
        differences = [one.measures.max_abs for one in found.compared if one.decides]
        self.max_abs = max((one for one in differences if one is not None), default=None)
        if found.failures:
            return "failed", "; ".join(found.failures)
        return "passed", f"{len(cases)} samples agree with PyTorch, largest difference {self.max_abs or 0.0:.3g}"

    @property
    def _runner(self) -> OnnxRuntimeRunner:
        """The model in ONNX Runtime, with one session for all checks."""
        if self._opened is None:
            options = OnnxRuntimeOptions(session_options=self.artifact.session_options)
            self._opened = OnnxRuntimeRunner(self.folder / MODEL_FILE, options)
        return self._opened


def _check(name: str, is_good: bool, detail: str) -> VerificationCheck:
    return VerificationCheck(name=name, verdict="passed" if is_good else "failed", detail=detail)


def _tried(name: str, check: Callable[[], _Result]) -> VerificationCheck:
    try:
        verdict, detail = check()
    except Refused as refusal:
        if refusal.is_of_deployment:
            raise
        verdict, detail = "failed", f"{refusal.subject} {refusal.problem}"
    # A reader cannot open the folder. It has another name each time, and equal results must have equal texts.
    return VerificationCheck(name=name, verdict=verdict, detail=without_folders(detail))


def _specs(specs: tuple[TensorSpec, ...]) -> str:
    """Return tensors as text. A dimension that varies is -1, and its name does not count."""
    return ", ".join(
        f"{spec.name} {spec.dtype} [{', '.join(str(n) if isinstance(n, int) else '-1' for n in spec.shape)}]"
        for spec in specs
    )
