"""Comparison of both sides on every sample, with notes about skipped samples and the first failed case."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnx_release.errors import Refused
from onnx_release.limits import ParityLimits
from onnx_release.parity.compare_outputs import compare_outputs, evaluate_parity
from onnx_release.parity.measures import ColumnScale
from onnx_release.parity.scales import output_scales
from onnx_release.records import OnnxArtifact, OutputParity, ParityReport
from onnx_release.runners import Runner
from onnx_release.runners.progress import Progress
from onnx_release.samples.dimensions import Dimensions
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

_log = logging.getLogger(__name__)
_RANGE_ADVICE = "Give the range of each input as low and high in the parameter input_spec"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCase:
    """Sample on which the sides differ, with the outputs of each, and the scales over all samples."""

    sample: Sample
    reference: Arrays
    candidate: Arrays
    scales: dict[str, tuple[ColumnScale, ...]]


@dataclass(slots=True)
class Comparison:
    """Comparison in two steps, so that only one side needs to be in memory: `run_reference`, then `run_candidate`.

    Attributes:
        artifact: The record of the exported folder.
        limits: The parity limits.
        expected: The samples that PyTorch ran, with its outputs.
        compared: One result per output and sample.
        failures: Reasons against the artifact besides failed results.
        notes: The skipped samples with the reason.
        warnings: Samples on which a side fails and that do not decide, and NaN that both sides return.
        failed_case: The first sample that decides and has a failed result.
    """

    artifact: OnnxArtifact
    limits: ParityLimits
    expected: list[tuple[Sample, Arrays]] = field(default_factory=list)
    compared: list[OutputParity] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failed_case: FailedCase | None = None

    def run_reference(self, runner: Runner, samples: Sequence[Sample]) -> None:
        """Run PyTorch on every sample.

        An invented sample on which PyTorch fails is skipped. A seeded one counts as invented when PyTorch runs a logged
        sample of the same batch size: then the model refuses the values. With NaN in its outputs, a seeded sample does
        not decide, and zeros and extremes are skipped.
        """
        progress = Progress()
        for number, sample in enumerate(samples, 1):
            if progress.is_due():
                _log.info("PyTorch runs sample %d of %d, batch %d.", number, len(samples), sample.batch_size)
            try:
                outputs = run(runner, sample)
            except Refused as refusal:
                self._add_failure(sample, refusal)
                continue
            if not sample.decides and nan_outputs(outputs):
                self.notes.append(f"'{sample.name}' was skipped: PyTorch itself returns NaN")
                continue
            if sample.seeded and (names := nan_outputs(outputs)) and self._logged_are_free_of_nan(names):
                self.warnings.append(
                    f"'{sample.name}' at batch size {sample.batch_size} does not decide: PyTorch returns NaN in "
                    f"{', '.join(names)}. {_RANGE_ADVICE}"
                )
                sample = replace(sample, decides=False)
            self.expected.append((sample, outputs))
        for dimension in Dimensions.of(self.artifact.inputs).others:
            if not any(dimension in sample.varied for sample, _ in self.expected):
                self.failures.append(
                    f"dimension '{dimension}' varies in the signature, and PyTorch runs only at the size of the "
                    "example: write the one size into the signature, or the sizes to test into the parameter input_spec"
                )

    def repeat_first(self, runner: Runner) -> None:
        """Run PyTorch on the first sample again: a result that other samples change cannot be a reference."""
        for sample, outputs in self.expected[:1]:
            for repeated in compare_outputs(outputs, run(runner, sample), sample, self.limits):
                if not repeated.passed:
                    self.failures.append(
                        f"PyTorch returns another output '{repeated.output}' for '{sample.name}' after the other "
                        f"samples ({'; '.join(repeated.failures)}): an ONNX graph has no state. Remove random numbers, "
                        "and values that `forward` keeps between calls"
                    )

    def _add_failure(self, sample: Sample, refusal: Refused) -> None:
        """Add a note, a warning or a failure about a sample that PyTorch does not run."""
        logged_sizes = [each.batch_size for each, _ in self.expected if _is_logged(each)]
        if sample.probing:
            self.notes.append(f"'{sample.name}' was skipped: PyTorch itself fails on it")
        elif sample.seeded and sample.batch_size in logged_sizes:
            self.warnings.append(
                f"'{sample.name}' at batch size {sample.batch_size} was skipped: PyTorch itself {refusal.problem}. "
                + _RANGE_ADVICE
            )
        elif sample.seeded and not logged_sizes:
            self.failures.append(
                f"{refusal.subject} {refusal.problem}. The values are random: log an input example with the model. "
                + _RANGE_ADVICE
            )
        else:
            self.failures.append(str(refusal))

    def _logged_are_free_of_nan(self, names: Sequence[str]) -> bool:
        logged = [outputs for sample, outputs in self.expected if _is_logged(sample)]
        return bool(logged) and not any(name in names for outputs in logged for name in nan_outputs(outputs))

    def run_candidate(self, runner: Runner) -> None:
        """Run ONNX Runtime on the samples that PyTorch ran, and compare the outputs."""
        scales, progress = output_scales(self.expected), Progress()
        for index, (sample, reference) in enumerate(self.expected):
            if progress.is_due():
                _log.info(
                    "ONNX Runtime runs sample %d of %d, batch %d.", index + 1, len(self.expected), sample.batch_size
                )
            try:
                candidate = run(runner, sample)
            except Refused as refusal:
                if sample.decides:
                    self.failures.append(str(refusal))
                else:
                    self.warnings.append(
                        f"ONNX Runtime fails on '{sample.name}', and PyTorch runs it: {refusal.problem}"
                    )
                continue
            results = compare_outputs(reference, candidate, sample, self.limits, scales)
            self.compared += results
            if sample.decides and self.failed_case is None and not all(result.passed for result in results):
                self.failed_case = FailedCase(sample=sample, reference=reference, candidate=candidate, scales=scales)
            if index == 0:
                # The smoke test before registration checks this too, but only after the upload.
                self.failures += only_nan(candidate)
                self.warnings += [
                    f"output '{name}' contains NaN on '{sample.name}', in PyTorch too"
                    for name in nan_outputs(reference)
                ]
        sizes = sorted({sample.batch_size for sample, _ in self.expected})
        failed = sum(result.decides and not result.passed for result in self.compared)
        _log.info(
            "Compared %d outputs of %d samples at batch %s: %s.",
            len(self.compared), len(self.expected), ", ".join(map(str, sizes)),
            f"{failed} failed" if failed else "passed",
        )  # fmt: skip

    def report(self) -> ParityReport:
        """Return the report of all comparisons."""
        report = evaluate_parity(self.artifact, self.compared, self.limits, self.failures, self.notes)
        return report.replace(warnings=(*self.warnings, *report.warnings))


def run(runner: Runner, sample: Sample) -> Arrays:
    """Run a copy of the sample: a model may write into its input, and the other side gets the same sample."""
    return runner.run({name: array.copy() for name, array in sample.inputs.items()})


def nan_outputs(outputs: Arrays) -> list[str]:
    """Return the names of the outputs that contain NaN. Infinities are values, such as the logits of illegal moves."""
    return [name for name, array in outputs.items() if array.dtype.kind == "f" and np.isnan(array).any()]


def only_nan(outputs: Arrays) -> list[str]:
    """Return one failure for each output without a value except NaN."""
    return [
        f"output '{name}' is NaN everywhere on the model's own example"
        for name in nan_outputs(outputs)
        if np.isnan(outputs[name]).all()
    ]


def _is_logged(sample: Sample) -> bool:
    """Return True for the training run's example and a user's inputs."""
    return not (sample.seeded or sample.probing)
