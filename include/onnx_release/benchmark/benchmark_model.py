"""Benchmark of one artifact against its trained model: parity first, then latency."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnx_release.benchmark.champion import Champion, open_champion
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
from onnx_release.parity.stored_reference import stored_failures
from onnx_release.records import (
    BenchmarkReport,
    ChampionComparison,
    LatencyReport,
    OnnxArtifact,
    ParityReport,
    RuntimeReport,
)
from onnx_release.report.champion import judge_champion
from onnx_release.runners.onnxruntime import OnnxRuntimeRunner
from onnx_release.samples.reference import read_reference
from onnx_release.samples.sample import Sample
from onnx_release.serving.target_runtimes import RuntimeComparison
from onnx_release.text import shorten
from onnx_release.trained.mapped_weights import pages_dropped_after

_log = logging.getLogger(__name__)
# A variable of NVIDIA's libraries. 0 turns TF32 off.
_TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"


def benchmark_artifact(
    trained: Path, folder: Path, artifact: OnnxArtifact, options: BenchmarkOptions
) -> BenchmarkReport:
    """Compare the artifact with the trained model, and measure the latency of both when they agree.

    A side that does not run a sample is a failure in the report, and so is a session that does not open.

    Args:
        trained: The trained model, as for the export.
        folder: The artifact's folder. Its bytes are compared with `artifact` first.
        artifact: The record of the artifact.
        options: The options of comparison and measurement.

    Raises:
        Refused: The folder has other bytes, the model cannot be loaded, or an option cannot be used.
    """
    require_valid_latency_options(options.latency_budget, options.measure_plan)
    return _compare(trained, folder, artifact, options, timed=True)


def compare_artifact(trained: Path, folder: Path, artifact: OnnxArtifact, options: BenchmarkOptions) -> ParityReport:
    """Compare as `benchmark_artifact` does, without a measurement of latency."""
    return _compare(trained, folder, artifact, options, timed=False).parity


def _compare(
    trained: Path, folder: Path, artifact: OnnxArtifact, options: BenchmarkOptions, *, timed: bool
) -> BenchmarkReport:
    require_limits(options.limits_for(artifact.precision), artifact.outputs)
    setup = BenchmarkSetup.load(trained, folder, artifact, options)
    samples = setup.samples()
    comparison = Comparison(artifact=artifact, limits=setup.options.limits_for(artifact.precision))
    with pages_dropped_after(setup.model), setup.reference(mha_fastpath=False) as reference:
        comparison.run_reference(reference, samples)
        comparison.repeat_first(reference)
    latency: LatencyReport | None = None
    compared: ChampionComparison | None = None
    runtimes: tuple[RuntimeReport, ...] = ()
    try:
        candidate = setup.candidate()
    except Refused as refusal:
        comparison.failures.append(str(refusal))
    else:
        with candidate:
            comparison.run_candidate(candidate)
            if comparison.report().passed:
                comparison.failures += stored_failures(
                    candidate, read_reference(folder), comparison.limits, comparison.expected
                )
            if timed and comparison.report().passed:
                runtimes = _run_in_runtimes(setup, comparison)
                with open_champion(setup, candidate, samples) as champion:
                    latency = _measure_latency(setup, candidate, samples, champion)
                compared = judge_champion(champion.compared, latency) if champion else None
    parity = comparison.report()
    if comparison.failed_case is not None:
        parity = _explain_failure(setup, parity, comparison.failed_case)
    parts = (latency, *([compared] if compared else []), *runtimes)
    return BenchmarkReport(
        sha256=artifact.sha256,
        passed=all(part is not None and part.passed for part in parts),
        parity=parity,
        latency=latency,
        champion=compared,
        runtimes=runtimes,
    )


def _run_in_runtimes(setup: BenchmarkSetup, comparison: Comparison) -> tuple[RuntimeReport, ...]:
    """Return the reports of the target versions of ONNX Runtime."""
    of_runtimes = RuntimeComparison(
        artifact=setup.artifact,
        folder=setup.folder,
        expected=comparison.expected,
        limits=comparison.limits,
        threads=setup.threads,
    )
    return tuple(of_runtimes.run(environment) for environment in setup.options.target_runtimes)


def _explain_failure(setup: BenchmarkSetup, parity: ParityReport, case: FailedCase) -> ParityReport:
    """Return the report with the first diverging node, or a note about why there is none, and write the bundle."""
    strategy, precision = setup.artifact.strategy, setup.artifact.precision
    divergence, note = None, None
    if not precision.is_exact:
        note = f"no search for the first difference: every node of a {precision} model differs"
    elif setup.device != "cpu":
        note = gpu_note()
    else:
        try:
            contract = replace(contract_for(setup.package), output_names=tuple(case.reference))
            program = retrace(setup.model, contract, strategy).program
            if program is None:
                note = f"no search for the first difference: the strategy {strategy} keeps no names of values"
            else:
                divergence = find_divergence(program, setup.folder, case.sample, expected=case.reference)
        except Exception as error:  # noqa: BLE001 - a wrong graph can fail in any library; the verdict does not change
            _log.warning("The search for the diverging node failed.", exc_info=True)
            note = f"the search for the first difference failed: {type(error).__name__}: {shorten(error)}"
    parity = parity.replace(divergence=divergence, notes=(*parity.notes, *([note] if note else [])))
    if setup.options.reproduction_folder is not None:
        write_reproduction(
            Path(setup.options.reproduction_folder),
            ReproductionCase(
                sample=case.sample,
                reference=case.reference,
                candidate=case.candidate,
                limits=parity.limits,
                failures=parity.failures,
                divergence=divergence,
                scales=case.scales,
                versions=setup.artifact.tool_versions,
                model=setup.folder,
                sha256=setup.artifact.sha256,
            ),
        )
    return parity


def gpu_note() -> str:
    """Return why a difference on a GPU was not searched, and its likely cause."""
    # The search runs on the CPU, where products have all bits of float32.
    note = "no search for the first difference on a GPU"
    if os.environ.get(_TF32_OVERRIDE) == "0":
        return note
    return (
        f"{note}. There ONNX Runtime rounds factors of float32 products to TF32, with 10 bits of fraction: set "
        f"{_TF32_OVERRIDE}=0 in the environment of workers and services, or give other limits"
    )


def _measure_latency(
    setup: BenchmarkSetup, candidate: OnnxRuntimeRunner, samples: Sequence[Sample], champion: Champion | None
) -> LatencyReport:
    """Measure all sides at every batch size of the options; PyTorch runs with its defaults, fast path included."""
    options, budget = setup.options, setup.options.latency_budget
    sizes = {*options.batch_sizes, budget.batch_size}
    # The first sample of a size is the example or the user's: it is closest to the served inputs.
    timed = {
        sample.batch_size: sample for sample in reversed(samples) if sample.batch_size in sizes and not sample.probing
    }
    # Described before the measurement: its load average is then that of other processes.
    host = describe_host()
    lock = HostLock(options.lock)
    with setup.reference() as reference, lock.held():
        sides = Sides(reference=reference, candidate=candidate)
        if champion is not None:
            limit = 1.0 - champion.compared.margin
            sides = replace(sides, champion=champion.runner, champion_speed_min=limit)
        batches = measure_all(sides, timed, options.measure_plan, budget)
    measured = LatencyReport(
        sha256=setup.artifact.sha256,
        batches=batches,
        threads=setup.threads,
        device=setup.device,
        providers_requested=candidate.providers_requested,
        providers_active=candidate.providers_active,
        host=host,
        waited_s=round(lock.waited_s, 3),
    )
    return evaluate_latency(measured, budget)
