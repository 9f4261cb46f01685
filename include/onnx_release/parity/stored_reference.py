"""Parity with the reference outputs in an artifact folder, without PyTorch and without the training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_release.errors import Refused
from onnx_release.limits import ParityLimits
from onnx_release.parity.compare_model import run
from onnx_release.parity.compare_outputs import compare_outputs
from onnx_release.parity.scales import output_scales
from onnx_release.records import OutputParity
from onnx_release.runners import Runner
from onnx_release.samples.reference import Case

# The parity comparison has many rows. A few of them may have half its ratio of signal to noise.
FEW_ROWS_DB = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredParity:
    """Result of the comparison with the reference outputs.

    Attributes:
        compared: One comparison for each output and sample.
        failures: One sentence for each failed output, and for each sample that does not run. Only samples that decide
            count.
    """

    compared: tuple[OutputParity, ...]
    failures: tuple[str, ...]


def compare_stored(
    runner: Runner, cases: Sequence[Case], limits: ParityLimits, others: Sequence[Case] = ()
) -> StoredParity:
    """Run the stored inputs, and compare the outputs with PyTorch's stored ones.

    Args:
        runner: The open model.
        cases: The samples from `samples.reference.read_reference`.
        limits: The limits of the release. The ratio of signal to noise may be `FEW_ROWS_DB` lower.
        others: More samples with PyTorch's outputs, whose values count in the scale of each column.
    """
    scales = output_scales([*others, *cases])
    if limits.sqnr_min_db is not None:
        limits = limits.replace(sqnr_min_db=limits.sqnr_min_db - FEW_ROWS_DB)
    compared: list[OutputParity] = []
    failures: list[str] = []
    for sample, reference in cases:
        try:
            compared += compare_outputs(reference, run(runner, sample), sample, limits, scales)
        except Refused as refusal:
            if sample.decides:
                failures.append(f"'{sample.name}' at batch size {sample.batch_size}: {refusal.problem}")
    failures += [
        f"output '{one.output}' of '{one.sample}' at batch size {one.batch_size}: {'; '.join(one.failures)}"
        for one in compared
        if one.decides and not one.passed
    ]
    return StoredParity(compared=tuple(compared), failures=tuple(failures))


def stored_failures(
    runner: Runner, cases: Sequence[Case] | None, limits: ParityLimits, others: Sequence[Case]
) -> list[str]:
    """Return a sentence for each failure of `compare_stored`, for a report. A folder without the file has none."""
    failures = compare_stored(runner, cases, limits, others).failures if cases else ()
    return [f"reference outputs: {failure}" for failure in failures]
