"""The verdict on an exported model: does it compute what PyTorch computes, and how fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from onnx_release.artifact import folder_sha256, verify_folder
from onnx_release.budget import Conditions, judge_latency, require_sane
from onnx_release.errors import Refused
from onnx_release.host import describe_host, usable_cpus
from onnx_release.latency import Sides, measure_all
from onnx_release.limits import (
    BATCH_SIZES,
    MODEL_FILE,
    UNSEEN_BATCH_SIZE,
    LatencyBudget,
    MeasurePlan,
    ParityLimits,
)
from onnx_release.package import read_example, read_trained
from onnx_release.parity import compare_outputs, judge_parity, require_limits
from onnx_release.records import BenchmarkReport, LatencyReport, OnnxArtifact, OutputParity, TensorSpec
from onnx_release.runners import Runner, ort_runner, torch_runner
from onnx_release.runners.ort_runner import CUDA_PROVIDERS, OrtOptions, OrtRunner
from onnx_release.runners.torch_runner import TorchModel, TorchOptions, TorchRunner
from onnx_release.samples import Arrays, Sample, make_samples
from onnx_release.source import load_trained


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """How to judge. The device is no choice here: the artifact is tested on the providers that its package names."""

    batch_sizes: tuple[int, ...] = BATCH_SIZES
    limits: ParityLimits = field(default_factory=ParityLimits)
    budget: LatencyBudget = field(default_factory=LatencyBudget)
    plan: MeasurePlan = field(default_factory=MeasurePlan)
    allow_pickle: bool = False


def judge_artifact(trained: Path, folder: Path, artifact: OnnxArtifact, options: JudgeOptions) -> BenchmarkReport:
    """Compare the artifact with the trained model, and time both when they agree.

    The folder's bytes are held against `artifact` first. A side that cannot run a sample is a failure in the report.

    :param trained: the MLflow model folder of the training run.
    :param folder: the artifact's folder.
    :raises Refused: when there is nothing to judge: other bytes, a model that cannot be loaded, senseless options.
    """
    require_sane(options.budget, options.plan)
    require_limits(options.limits, artifact.outputs)
    _require_bytes(folder, artifact)
    setting = _setting(options, artifact)
    package = read_trained(trained)
    samples = make_samples(package.inputs, package.example, _parity_sizes(options, artifact))
    reference = _Reference(
        model=load_trained(package, allow_pickle=options.allow_pickle),
        options=TorchOptions(
            input_names=tuple(spec.name for spec in package.inputs),
            output_names=tuple(spec.name for spec in package.outputs),
            device=setting.device,
            threads=setting.threads,
        ),
    )
    expected, failures = _reference_outputs(reference, samples)
    try:
        candidate = OrtRunner(folder / MODEL_FILE, OrtOptions(threads=setting.threads, providers=setting.providers))
    except Refused as refusal:
        parity = judge_parity(artifact, (), options.limits, [*failures, str(refusal)])
        return BenchmarkReport(sha256=artifact.sha256, passed=False, parity=parity)
    with candidate:
        comparisons, more = _compare(expected, candidate, samples, options.limits)
        parity = judge_parity(artifact, comparisons, options.limits, [*failures, *more])
        if not parity.passed:
            return BenchmarkReport(sha256=artifact.sha256, passed=False, parity=parity)
        timed = _Timed(sha256=artifact.sha256, setting=setting, samples=samples, options=options)
        latency = _latency(reference, candidate, timed)
    return BenchmarkReport(sha256=artifact.sha256, passed=latency.passed, parity=parity, latency=latency)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """What both sides run with."""

    device: str
    threads: int
    providers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reference:
    """The trained model and how to run it; a runner of it is opened twice."""

    model: TorchModel
    options: TorchOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    """What is timed, and under which options."""

    sha256: str
    setting: _Setting
    samples: Sequence[Sample]
    options: JudgeOptions


def _require_bytes(folder: Path, artifact: OnnxArtifact) -> None:
    verify_folder(folder, artifact.files)
    if (found := folder_sha256(artifact.files)) != artifact.sha256:
        raise Refused(
            "The artifact's record",
            f"says sha256 {artifact.sha256}, and its files amount to {found}",
            "Export the training run again.",
        )


def _setting(options: JudgeOptions, artifact: OnnxArtifact) -> _Setting:
    on_cuda = artifact.providers[:1] == CUDA_PROVIDERS[:1]
    if on_cuda and not (torch_runner.cuda_available() and ort_runner.cuda_available()):
        raise Refused(
            f"artifact {artifact.sha256}",
            f"is packaged for {', '.join(artifact.providers)}, and PyTorch or ONNX Runtime has no CUDA here",
            "Run this task on a worker with a GPU, or export with device 'cpu'.",
        )
    return _Setting(
        device="cuda" if on_cuda else "cpu",
        threads=options.plan.threads or usable_cpus(),
        providers=artifact.providers,
    )


def _parity_sizes(options: JudgeOptions, artifact: OnnxArtifact) -> list[int]:
    """Return every size to be compared: those asked for, the served one, and one that the exporter has not seen."""
    sizes = {*options.batch_sizes, options.budget.batch_size}
    if sizes <= {artifact.export_batch_size}:
        sizes.add(UNSEEN_BATCH_SIZE if artifact.export_batch_size != UNSEEN_BATCH_SIZE else UNSEEN_BATCH_SIZE + 1)
    return sorted(sizes)


def _reference_outputs(
    reference: _Reference, samples: Sequence[Sample]
) -> tuple[dict[tuple[str, int], Arrays], list[str]]:
    """Run PyTorch on every sample, without the fast path of attention, whose masked places hold other numbers."""
    outputs, failures = {}, []
    with TorchRunner(reference.model, replace(reference.options, mha_fastpath=False)) as runner:
        for sample in samples:
            try:
                outputs[sample.name, sample.batch_size] = _run(runner, sample)
            except Refused as refusal:
                failures.append(str(refusal))
    return outputs, failures


def _run(runner: Runner, sample: Sample) -> Arrays:
    # A model that writes into its input must not change what the other side is given.
    return runner.run({name: array.copy() for name, array in sample.inputs.items()})


def _compare(
    expected: Mapping[tuple[str, int], Arrays], candidate: Runner, samples: Sequence[Sample], limits: ParityLimits
) -> tuple[list[OutputParity], list[str]]:
    comparisons, failures = [], []
    for index, sample in enumerate(samples):
        try:
            outputs = _run(candidate, sample)
        except Refused as refusal:
            failures.append(str(refusal))
            continue
        if reference := expected.get((sample.name, sample.batch_size)):
            comparisons += compare_outputs(reference, outputs, sample, limits)
        if index == 0:
            # The smoke test before registration asks this too, and is too late to find it first.
            failures += _not_finite(outputs)
    return comparisons, failures


def _latency(reference: _Reference, candidate: OrtRunner, timed: _Timed) -> LatencyReport:
    """Time both sides at every batch size asked for; PyTorch with its own defaults, fast path included."""
    options, setting = timed.options, timed.setting
    sizes = {*options.batch_sizes, options.budget.batch_size}
    # The first sample of a size is the example where there is one: the most like what will be served.
    samples = {sample.batch_size: sample for sample in reversed(timed.samples) if sample.batch_size in sizes}
    conditions = Conditions(
        sha256=timed.sha256,
        threads=setting.threads,
        device=setting.device,
        providers_requested=candidate.providers_requested,
        providers_active=candidate.providers_active,
        host=describe_host(),
    )
    limits = {options.budget.batch_size: options.budget.speedup_min}
    with TorchRunner(reference.model, reference.options) as runner:
        batches = measure_all(Sides(torch=runner, onnxruntime=candidate), samples, options.plan, limits)
    return judge_latency(batches, options.budget, options.plan, conditions)


def smoke_test(folder: Path, artifact: OnnxArtifact) -> None:
    """Hold the folder against `artifact`, and run the package's example on it in ONNX Runtime alone, on the CPU.

    :raises Refused: naming every file that differs, or every output that is missing, too many, not finite, or of
        another dtype or shape than the artifact says.
    """
    _require_bytes(folder, artifact)
    sample = make_samples(artifact.inputs, read_example(folder), (artifact.export_batch_size,))[0]
    with OrtRunner(folder / MODEL_FILE, OrtOptions()) as runner:
        outputs = _run(runner, sample)
    wrong = [*_misfits(outputs, artifact.outputs, sample), *_not_finite(outputs)]
    if wrong:
        raise Refused(
            f"artifact {artifact.sha256} on its {sample.name}",
            "; ".join(wrong),
            "Export the training run again; these bytes are not fit to be served.",
        )


def _not_finite(outputs: Arrays) -> list[str]:
    return [
        f"output '{name}' holds NaN or infinity on the model's own example"
        for name, array in outputs.items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]


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
