"""Comparison of both sides on every sample, with notes about skipped samples and the first failed case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_release.errors import Refused
from onnx_release.limits import ParityLimits
from onnx_release.parity.compare_outputs import compare_outputs, evaluate_parity
from onnx_release.parity.measures import ColumnScale
from onnx_release.parity.scales import output_scales
from onnx_release.records import OnnxArtifact, OutputParity, ParityReport
from onnx_release.runners import Runner
from onnx_release.samples.edge_cases import varying_dimensions
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays


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
        warnings: Samples that do not decide and that ONNX Runtime does not run.
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
        """Run PyTorch on every sample. A probing sample on which it fails or returns NaN is skipped."""
        for sample in samples:
            try:
                outputs = run(runner, sample)
            except Refused as refusal:
                if sample.probing:
                    self.notes.append(f"'{sample.name}' was skipped: PyTorch itself fails on it")
                else:
                    self.failures.append(str(refusal))
                continue
            if sample.probing and not sample.varied and not_finite(outputs):
                self.notes.append(f"'{sample.name}' was skipped: PyTorch itself returns NaN or infinity")
                continue
            self.expected.append((sample, outputs))
        for dimension in varying_dimensions(self.artifact.inputs):
            if not any(sample.varied == dimension for sample, _ in self.expected):
                self.failures.append(
                    f"dimension '{dimension}' varies in the signature, and PyTorch runs only at the size of the "
                    "example: write the one size into the signature, or the sizes to test into the parameter input_spec"
                )

    def run_candidate(self, runner: Runner) -> None:
        """Run ONNX Runtime on the samples that PyTorch ran, and compare the outputs."""
        scales = output_scales(self.expected)
        for index, (sample, reference) in enumerate(self.expected):
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
                self.failures += not_finite(candidate)

    def report(self) -> ParityReport:
        """Return the report of all comparisons."""
        report = evaluate_parity(self.artifact, self.compared, self.limits, self.failures, self.notes)
        return report.replace(warnings=(*self.warnings, *report.warnings))


def run(runner: Runner, sample: Sample) -> Arrays:
    """Run a copy of the sample: a model may write into its input, and the other side gets the same sample."""
    return runner.run({name: array.copy() for name, array in sample.inputs.items()})


def not_finite(outputs: Arrays) -> list[str]:
    """Return one failure for each output with NaN or infinity."""
    return [
        f"output '{name}' holds NaN or infinity on the model's own example"
        for name, array in outputs.items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]
