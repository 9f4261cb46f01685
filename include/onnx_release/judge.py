"""The verdict on an exported model: does it compute what PyTorch computes, and how fast."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnx_release.blame.search import find_divergence
from onnx_release.budget import Conditions, judge_latency, require_sane
from onnx_release.comparing import Comparison, FailedCase, not_finite, run
from onnx_release.errors import Refused
from onnx_release.export import retrace
from onnx_release.host import describe_host
from onnx_release.latency import Sides, measure_all
from onnx_release.limits import MODEL_FILE
from onnx_release.package import read_example
from onnx_release.parity import require_limits
from onnx_release.records import BenchmarkReport, Divergence, LatencyReport, OnnxArtifact, ParityReport, TensorSpec
from onnx_release.reproduction import ReproductionCase, write_reproduction
from onnx_release.runners.ort_runner import OrtOptions, OrtRunner
from onnx_release.samples import Arrays, Sample, make_samples
from onnx_release.steps import contract_of
from onnx_release.subject import JudgeOptions, Subject, require_bytes

_log = logging.getLogger(__name__)


def judge_artifact(trained: Path, folder: Path, artifact: OnnxArtifact, options: JudgeOptions) -> BenchmarkReport:
    """Compare the artifact with the trained model, and time both when they agree.

    The folder's bytes are held against `artifact` first. A side that cannot run a sample is a failure in the report.

    :param trained: what the training run left, as the export took it.
    :param folder: the artifact's folder.
    :raises Refused: when there is nothing to judge: other bytes, a model that cannot be loaded, senseless options.
    """
    require_sane(options.budget, options.plan)
    require_limits(options.limits, artifact.outputs)
    subject = Subject.load(trained, folder, artifact, options)
    samples = subject.samples()
    comparison = Comparison(artifact=artifact, limits=options.limits)
    with subject.reference(mha_fastpath=False) as reference:
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


def compare_artifact(trained: Path, folder: Path, artifact: OnnxArtifact, options: JudgeOptions) -> ParityReport:
    """Compare the two as `judge_artifact` does, and time nothing."""
    require_limits(options.limits, artifact.outputs)
    subject = Subject.load(trained, folder, artifact, options)
    comparison = Comparison(artifact=artifact, limits=options.limits)
    with subject.reference(mha_fastpath=False) as reference:
        comparison.run_reference(reference, subject.samples())
    with subject.candidate() as candidate:
        comparison.run_candidate(candidate)
    parity = comparison.report()
    return parity if parity.passed else _explained(subject, parity, comparison.failed_case)


def _explained(subject: Subject, parity: ParityReport, case: FailedCase | None) -> ParityReport:
    """Return the report with the node where the difference begins, and leave what shows it again."""
    if case is None:
        return parity
    divergence, why_not = _blame(subject, case)
    parity = replace(parity, divergence=divergence, notes=(*parity.notes, *([why_not] if why_not else [])))
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
                scales={c.output: c.scale for c in parity.comparisons if c.scale is not None},
                versions=subject.artifact.tool_versions,
                model=subject.folder,
                sha256=subject.artifact.sha256,
            ),
        )
    return parity


def _blame(subject: Subject, case: FailedCase) -> tuple[Divergence | None, str]:
    """Return where the difference begins, or why that cannot be said: it is no part of the verdict."""
    strategy = subject.artifact.exporter
    try:
        contract = replace(contract_of(subject.package), output_names=tuple(case.reference))
        program = retrace(subject.model, contract, strategy).program
        if program is None:
            return None, f"where the difference begins cannot be told: the exporter {strategy} keeps no names"
        return find_divergence(program, subject.folder, case.sample, expected=case.reference), ""
    except Exception as error:  # noqa: BLE001 - whatever the search meets in a graph that is wrong, the verdict stands
        _log.warning("The search for the node at fault failed.", exc_info=True)
        return None, f"where the difference begins could not be found: {type(error).__name__}: {str(error)[:300]}"


def _latency(subject: Subject, candidate: OrtRunner, samples: Sequence[Sample]) -> LatencyReport:
    """Time both sides at every batch size asked for; PyTorch with its own defaults, fast path included."""
    options = subject.options
    sizes = {*options.batch_sizes, options.budget.batch_size}
    # The first sample of a size is the example where there is one: the most like what will be served.
    timed = {
        sample.batch_size: sample for sample in reversed(samples) if sample.batch_size in sizes and not sample.probing
    }
    conditions = Conditions(
        sha256=subject.artifact.sha256,
        threads=subject.threads,
        device=subject.device,
        providers_requested=candidate.providers_requested,
        providers_active=candidate.providers_active,
        host=describe_host(),
    )
    limits = {options.budget.batch_size: options.budget.speedup_min}
    with subject.reference() as reference:
        batches = measure_all(Sides(torch=reference, onnxruntime=candidate), timed, options.plan, limits)
    return judge_latency(batches, options.budget, options.plan, conditions)


def smoke_test(folder: Path, artifact: OnnxArtifact) -> None:
    """Hold the folder against `artifact`, and run the package's example on it in ONNX Runtime alone, on the CPU.

    :raises Refused: naming every file that differs, or every output that is missing, too many, not finite, or of
        another dtype or shape than the artifact says.
    """
    require_bytes(folder, artifact)
    sample = make_samples(artifact.inputs, read_example(folder), (artifact.export_batch_size,))[0]
    with OrtRunner(folder / MODEL_FILE, OrtOptions()) as runner:
        outputs = run(runner, sample)
    wrong = [*_misfits(outputs, artifact.outputs, sample), *not_finite(outputs)]
    if wrong:
        raise Refused(
            f"artifact {artifact.sha256} on its {sample.name}",
            "; ".join(wrong),
            "Export the training run again; these bytes are not fit to be served.",
        )


def _misfits(outputs: Arrays, specs: Sequence[TensorSpec], sample: Sample) -> list[str]:
    wanted = {spec.name: spec for spec in specs}
    found = [f"output '{name}' is missing" for name in wanted if name not in outputs]
    found += [f"output '{name}' is not in the artifact's record" for name in outputs if name not in wanted]
    for name, array in outputs.items():
        spec = wanted.get(name)
        if spec is not None and array.dtype.name != spec.dtype:
            found.append(f"output '{name}' is {array.dtype}, not {spec.dtype}")
        if spec is not None and not _fits(array.shape, spec, sample.batch_size):
            found.append(f"output '{name}' is of shape {list(array.shape)}, not {list(spec.shape)}")
    return found


def _fits(shape: tuple[int, ...], spec: TensorSpec, batch_size: int) -> bool:
    return len(shape) == len(spec.shape) and all(
        size == batch_size if wanted == "batch" else isinstance(wanted, str) or size == wanted
        for size, wanted in zip(shape, spec.shape, strict=True)
    )
