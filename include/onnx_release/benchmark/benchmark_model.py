"""The verdict on an exported model: does it compute what PyTorch computes, and how fast."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnx_release.benchmark.setup import BenchmarkOptions, BenchmarkSetup
from onnx_release.errors import Refused
from onnx_release.export.contract import contract_for
from onnx_release.export.strategies import retrace
from onnx_release.latency.evaluate import evaluate_latency, require_valid_latency_options
from onnx_release.latency.host import describe_host
from onnx_release.latency.host_lock import HostLock
from onnx_release.latency.measure import Sides, measure_all
from onnx_release.parity.compare_model import Comparison, FailedCase
from onnx_release.parity.divergence.search import find_divergence
from onnx_release.parity.limits import require_limits
from onnx_release.parity.reproduction import ReproductionCase, write_reproduction
from onnx_release.records import BenchmarkReport, Divergence, LatencyReport, OnnxArtifact, ParityReport
from onnx_release.runners.onnxruntime import OnnxRuntimeRunner
from onnx_release.samples.sample import Sample
from onnx_release.trained.mapped_weights import pages_dropped_after

_log = logging.getLogger(__name__)


def benchmark_artifact(
    trained: Path, folder: Path, artifact: OnnxArtifact, options: BenchmarkOptions
) -> BenchmarkReport:
    """Compare the artifact with the trained model, and time both when they agree.

    The folder's bytes are held against `artifact` first. A side that cannot run a sample is a failure in the report.

    :param trained: what the training run left, as the export took it.
    :param folder: the artifact's folder.
    :raises Refused: when there is nothing to judge: other bytes, a model that cannot be loaded, senseless options.
    """
    require_valid_latency_options(options.budget, options.plan)
    limits = options.limits_for(artifact.precision)
    require_limits(limits, artifact.outputs)
    subject = BenchmarkSetup.load(trained, folder, artifact, options)
    samples = subject.samples()
    comparison = Comparison(artifact=artifact, limits=limits)
    with pages_dropped_after(subject.model), subject.reference(mha_fastpath=False) as reference:
        comparison.run_reference(reference, samples)
    try:
        candidate = subject.candidate()
    except Refused as refusal:
        comparison.failures.append(str(refusal))
        return BenchmarkReport(sha256=artifact.sha256, passed=False, parity=comparison.report())
    with candidate:
        comparison.run_candidate(candidate)
        parity = comparison.report()
        latency = _latency(subject, candidate, samples) if parity.passed else None
    if latency is None:
        parity = _explained(subject, parity, comparison.failed_case)
        return BenchmarkReport(sha256=artifact.sha256, passed=False, parity=parity)
    return BenchmarkReport(sha256=artifact.sha256, passed=latency.passed, parity=parity, latency=latency)


def compare_artifact(trained: Path, folder: Path, artifact: OnnxArtifact, options: BenchmarkOptions) -> ParityReport:
    """Compare the two as `benchmark_artifact` does, and time nothing."""
    limits = options.limits_for(artifact.precision)
    require_limits(limits, artifact.outputs)
    subject = BenchmarkSetup.load(trained, folder, artifact, options)
    comparison = Comparison(artifact=artifact, limits=limits)
    with pages_dropped_after(subject.model), subject.reference(mha_fastpath=False) as reference:
        comparison.run_reference(reference, subject.samples())
    with subject.candidate() as candidate:
        comparison.run_candidate(candidate)
    parity = comparison.report()
    return parity if parity.passed else _explained(subject, parity, comparison.failed_case)


def _explained(subject: BenchmarkSetup, parity: ParityReport, case: FailedCase | None) -> ParityReport:
    """Return the report with the node where the difference begins, and leave what shows it again."""
    if case is None:
        return parity
    divergence, why_not = _blame(subject, case)
    parity = parity.replace(divergence=divergence, notes=(*parity.notes, *([why_not] if why_not else [])))
    if subject.options.reproduction:
        write_reproduction(
            Path(subject.options.reproduction),
            ReproductionCase(
                sample=case.sample,
                reference=case.reference,
                candidate=case.candidate,
                limits=parity.limits,
                failures=parity.failures,
                divergence=divergence,
                scales={c.output: c.measures.scale for c in parity.comparisons if c.measures.scale is not None},
                versions=subject.artifact.tool_versions,
                model=subject.folder,
                sha256=subject.artifact.sha256,
            ),
        )
    return parity


def _blame(subject: BenchmarkSetup, case: FailedCase) -> tuple[Divergence | None, str]:
    """Return where the difference begins, or why that cannot be said: it is no part of the verdict."""
    strategy = subject.artifact.strategy
    if not subject.artifact.precision.is_exact:
        return None, f"{subject.artifact.precision} differs from the first node on; these are its limits, not a fault"
    try:
        contract = replace(contract_for(subject.package), output_names=tuple(case.reference))
        program = retrace(subject.model, contract, strategy).program
        if program is None:
            return None, f"where the difference begins cannot be told: the exporter {strategy} keeps no names"
        return find_divergence(program, subject.folder, case.sample, expected=case.reference), ""
    except Exception as error:  # noqa: BLE001 - whatever the search meets in a graph that is wrong, the verdict stands
        _log.warning("The search for the node at fault failed.", exc_info=True)
        return None, f"where the difference begins could not be found: {type(error).__name__}: {str(error)[:300]}"


def _latency(subject: BenchmarkSetup, candidate: OnnxRuntimeRunner, samples: Sequence[Sample]) -> LatencyReport:
    """Time both sides at every batch size asked for; PyTorch with its own defaults, fast path included."""
    options = subject.options
    sizes = {*options.batch_sizes, options.budget.batch_size}
    # The first sample of a size is the example where there is one: the most like what will be served.
    timed = {
        sample.batch_size: sample for sample in reversed(samples) if sample.batch_size in sizes and not sample.probing
    }
    host = describe_host()  # before anything is measured: its load average is that of the others
    limits = {options.budget.batch_size: options.budget.speedup_min}
    with subject.reference() as reference, HostLock(options.lock).held():
        batches = measure_all(Sides(reference=reference, candidate=candidate), timed, options.plan, limits)
    measured = LatencyReport(
        sha256=subject.artifact.sha256,
        batches=batches,
        threads=subject.threads,
        device=subject.device,
        providers_requested=candidate.providers_requested,
        providers_active=candidate.providers_active,
        host=host,
    )
    return evaluate_latency(measured, options.budget)
