"""Comparison of PyTorch's outputs with ONNX Runtime's: by name, dtype, shape, and then by value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from onnx_release.limits import ParityLimits
from onnx_release.parity.limits import resolve_limits
from onnx_release.parity.measures import ColumnScale, Compared, compare_arrays
from onnx_release.parity.scales import output_scales
from onnx_release.records import AppliedLimit, ColumnParity, Measures, OnnxArtifact, OutputParity, ParityReport
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays


def compare_outputs(
    reference: Arrays,
    candidate: Arrays,
    sample: Sample,
    limits: ParityLimits,
    scales: Mapping[str, Sequence[ColumnScale]] | None = None,
) -> list[OutputParity]:
    """Compare every output that either side has.

    Args:
        reference: PyTorch's outputs by name.
        candidate: ONNX Runtime's outputs by name.
        sample: the inputs of both.
        limits: the limits of the release.
        scales: from `output_scales` over all samples; without it, the scale of this sample.
    """
    scales = output_scales([(dataclasses.replace(sample, decides=True), reference)]) if scales is None else scales
    results = []
    for name in dict.fromkeys((*reference, *candidate)):
        ours, theirs = reference.get(name), candidate.get(name)
        if ours is None:
            compared = Compared(failures=["ONNX Runtime returns it, PyTorch does not"])
        elif theirs is None:
            compared = Compared(failures=["PyTorch returns it, ONNX Runtime does not"])
        else:
            resolved = resolve_limits(limits, name, ours.dtype.name)
            uncertainty = reference.get(limits.uncertainty_of.get(name, ""))
            compared = compare_arrays(ours, theirs, resolved.model_dump(), scales.get(name, ()), uncertainty)
        shown = candidate[name] if ours is None else ours
        worst = compared.worst_column
        results.append(
            OutputParity(
                output=name,
                sample=sample.name,
                batch_size=sample.batch_size,
                dtype=shown.dtype.name,
                shape=tuple(shown.shape),
                measures=Measures(**compared.measures),
                applied=tuple(AppliedLimit(**one) for one in compared.applied),
                worst_column=ColumnParity(**dataclasses.asdict(worst)) if worst else None,
                decides=sample.decides,
                passed=not compared.failures,
                failures=tuple(compared.failures),
            )
        )
    return results


def evaluate_parity(
    artifact: OnnxArtifact,
    comparisons: Sequence[OutputParity],
    limits: ParityLimits,
    failures: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> ParityReport:
    """Return the report of all comparisons. It passes only when each that decides passed and none is missing.

    A comparison is missing when an output of the artifact was not compared on every sample that decides, or when every
    such sample has the batch size of the export.

    Args:
        artifact: the record of the exported folder.
        comparisons: the results of `compare_outputs` over all samples.
        limits: the limits that were applied.
        failures: further reasons against the artifact, for example a side that did not run a sample.
        notes: samples that were left out, with the reason.
    """
    deciding = [comparison for comparison in comparisons if comparison.decides]
    found = [*failures, *_failures_per_output(deciding)]
    samples = {(c.sample, c.batch_size) for c in deciding}
    for spec in artifact.outputs:
        compared = {(c.sample, c.batch_size) for c in deciding if c.output == spec.name}
        if not compared:
            found.append(f"output '{spec.name}' was never compared")
        elif not any(c.has_values for c in deciding if c.output == spec.name):
            found.append(
                f"output '{spec.name}' has no finite value on any sample, so nothing was compared: give inputs for "
                "which it has values, as the run's input example or by the parameter inputs_uri"
            )
        elif compared != samples:
            found.append(f"output '{spec.name}' was compared on {len(compared)} of {len(samples)} samples")
    if not deciding:
        found.append("nothing was compared")
    elif all(c.batch_size == artifact.export_batch_size for c in deciding):
        found.append(f"no batch size was compared but {artifact.export_batch_size}, the one of the export")
    sizes = tuple(sorted({comparison.batch_size for comparison in comparisons}))
    return ParityReport(
        sha256=artifact.sha256,
        passed=not found,
        comparisons=tuple(comparisons),
        batch_sizes=sizes,
        unseen_batch_sizes=tuple(size for size in sizes if size != artifact.export_batch_size),
        limits=limits.to_dict(),
        failures=tuple(found),
        warnings=tuple(_failures_per_output([c for c in comparisons if not c.decides])),
        notes=tuple(notes),
    )


def _failures_per_output(comparisons: Sequence[OutputParity]) -> Iterator[str]:
    """Yield one line per failed output: its first failed sample, and the count of all of them."""
    for output in dict.fromkeys(c.output for c in comparisons):
        every = [c for c in comparisons if c.output == output]
        failed = [c for c in every if not c.passed]
        if failed:
            why = "; ".join(failed[0].failures) or "did not pass"
            where = f"({failed[0].sample}, batch {failed[0].batch_size})"
            yield f"output '{output}' {where}: {why}; {len(failed)} of {len(every)} comparisons failed"
