"""Both sides run on every sample: what was compared, what was left out, and the first case that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_release.errors import Refused
from onnx_release.limits import ParityLimits
from onnx_release.parity.compare_outputs import compare_outputs, evaluate_parity, output_scales
from onnx_release.records import OnnxArtifact, OutputParity, ParityReport
from onnx_release.runners import Runner
from onnx_release.samples.edge_cases import varying_dimensions
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCase:
    """A sample on which the sides differ, with what each made of it."""

    sample: Sample
    reference: Arrays
    candidate: Arrays


@dataclass(slots=True)
class Comparison:
    """What PyTorch gave for each sample that it could run, and then what ONNX Runtime made of the same."""

    artifact: OnnxArtifact
    limits: ParityLimits
    expected: list[tuple[Sample, Arrays]] = field(default_factory=list)
    compared: list[OutputParity] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed_case: FailedCase | None = None

    def run_reference(self, runner: Runner, samples: Sequence[Sample]) -> None:
        """Run PyTorch on every sample; a probing one that it cannot run, or answers with NaN, is left out."""
        for sample in samples:
            try:
                outputs = run(runner, sample)
            except Refused as refusal:
                if sample.probing:
                    self.notes.append(f"'{sample.name}' was left out: PyTorch itself does not run it")
                else:
                    self.failures.append(str(refusal))
                continue
            if sample.probing and not sample.varied and not_finite(outputs):
                self.notes.append(f"'{sample.name}' was left out: PyTorch itself answers with NaN or infinity")
                continue
            self.expected.append((sample, outputs))
        self._require_other_sizes()

    def _require_other_sizes(self) -> None:
        for dimension in varying_dimensions(self.artifact.inputs):
            if not any(sample.varied == dimension for sample, _ in self.expected):
                self.failures.append(
                    f"dimension '{dimension}' varies by the signature, and PyTorch runs at no other size of it than "
                    "the example's: give the signature its one size, or the parameter input_spec the sizes to test"
                )

    def run_candidate(self, runner: Runner) -> None:
        """Run ONNX Runtime on what PyTorch ran, and compare."""
        scales = output_scales(outputs for _, outputs in self.expected)
        for index, (sample, reference) in enumerate(self.expected):
            try:
                candidate = run(runner, sample)
            except Refused as refusal:
                self.failures.append(str(refusal))
                continue
            results = compare_outputs(reference, candidate, sample, self.limits, scales)
            self.compared += results
            if self.failed_case is None and not all(result.passed for result in results):
                self.failed_case = FailedCase(sample=sample, reference=reference, candidate=candidate)
            if index == 0:
                # The smoke test before registration asks this too, and is too late to find it first.
                self.failures += not_finite(candidate)

    def report(self) -> ParityReport:
        """Return the verdict over all that was compared."""
        return evaluate_parity(self.artifact, self.compared, self.limits, self.failures, self.notes)


def run(runner: Runner, sample: Sample) -> Arrays:
    """Run a copy: a model that writes into its input must not change what the other side is given."""
    return runner.run({name: array.copy() for name, array in sample.inputs.items()})


def not_finite(outputs: Arrays) -> list[str]:
    """Return a line for each output that holds NaN or infinity."""
    return [
        f"output '{name}' holds NaN or infinity on the model's own example"
        for name, array in outputs.items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]
