"""Reference outputs of an export: the samples that travel with the artifact, and PyTorch's outputs for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx_release.export.verify import ExportVerifier
from onnx_release.limits import REFERENCE_EXTREMES_MAX_BYTES, REFERENCE_ROWS_MAX, UNSEEN_BATCH_SIZE
from onnx_release.parity.task_metrics import read_evaluation_inputs
from onnx_release.records import Finding, TensorSpec
from onnx_release.samples.edge_cases import probing_samples, read_npz
from onnx_release.samples.generate import make_samples
from onnx_release.samples.reference import Case, first_rows, fit_samples, write_reference
from onnx_release.samples.sample import Sample
from onnx_release.trained.mlflow_model import TrainedPackage


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceOptions:
    """Options of the reference outputs.

    Attributes:
        max_bytes: The largest size of all arrays. 0: no file is written.
        inputs_path: A user's ``.npz`` file of inputs, or None.
        evaluation_path: An ``.npz`` file of inputs and targets, or None.
    """

    max_bytes: int
    inputs_path: str | None
    evaluation_path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceOutputs:
    """Samples that travel with the artifact.

    Attributes:
        cases: The samples, with PyTorch's outputs.
        findings: A finding about samples that are too large.
    """

    cases: tuple[Case, ...] = ()
    findings: tuple[Finding, ...] = ()

    def write(self, folder: Path) -> None:
        """Write the file of an artifact folder, unless no sample decides."""
        if _decides(self.cases):
            write_reference(folder, self.cases)


def reference_outputs(
    folder: Path,
    verifier: ExportVerifier,
    package: TrainedPackage,
    inputs: Sequence[TensorSpec],
    options: ReferenceOptions,
) -> ReferenceOutputs:
    """Run PyTorch on the samples that travel with the artifact.

    Args:
        folder: The folder of the exported graph.
        verifier: The comparison with PyTorch.
        package: The description of the trained model.
        inputs: The inputs of the graph.
        options: The sizes and files.

    Raises:
        SampleRefused: A file of inputs cannot be used.
    """
    if options.max_bytes == 0:
        return ReferenceOutputs()
    with verifier.reference_outputs() as run:
        samples = _samples(package, inputs, options)
        if sum(path.stat().st_size for path in folder.iterdir()) > REFERENCE_EXTREMES_MAX_BYTES:
            samples = (sample for sample in samples if sample.decides)
        cases, notes = fit_samples(samples, inputs, run, options.max_bytes)
    if not _decides(cases):
        notes.append("no file is written")
    limit = f"The reference outputs have at most {options.max_bytes} bytes (`reference_max_bytes`)"
    finding = Finding(severity="info", code="reference_outputs", message=f"{limit}: {'; '.join(notes)}")
    return ReferenceOutputs(cases=tuple(cases), findings=(finding,) if notes else ())


def _decides(cases: Sequence[Case]) -> bool:
    return any(sample.decides for sample, _ in cases)


def _samples(package: TrainedPackage, inputs: Sequence[TensorSpec], options: ReferenceOptions) -> Iterator[Sample]:
    """Yield the example, a user's inputs, evaluation rows, random values, then zeros, extremes and other sizes."""
    sizes = (1, UNSEEN_BATCH_SIZE)
    made = make_samples(inputs, package.example, sizes, package.ranges)
    yield from (sample for sample in made if not sample.seeded and sample.batch_size in sizes)
    if options.inputs_path is not None:
        user = read_npz(Path(options.inputs_path), inputs, Path(options.inputs_path).name)
        yield first_rows(user, inputs, REFERENCE_ROWS_MAX)
    if options.evaluation_path is not None:
        evaluation = read_evaluation_inputs(Path(options.evaluation_path), inputs)
        yield first_rows(evaluation, inputs, REFERENCE_ROWS_MAX)
    yield from (sample for sample in made if sample.seeded and sample.batch_size == UNSEEN_BATCH_SIZE)
    for sample in probing_samples(inputs, package.example, package.ranges):
        # All rows of extreme values are alike, and each costs the time of PyTorch on one thread.
        yield sample if sample.varied else first_rows(sample, inputs, 1)
