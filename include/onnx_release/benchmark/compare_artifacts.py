"""Comparison of two released models: contract, outputs on the same inputs, and speed in the same rounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx_release.artifact.digests import require_bytes
from onnx_release.benchmark.champion import compare_runners
from onnx_release.errors import ParityRefused, Refused
from onnx_release.latency.host import describe_host, usable_cpus
from onnx_release.latency.host_lock import HostLock, LockOptions
from onnx_release.latency.measure import Sides, measure_all
from onnx_release.limits import MODEL_FILE, LatencyBudget, MeasurePlan, ParityLimits
from onnx_release.records import BatchLatency, Contract, HostInfo, OnnxArtifact, ParityReport
from onnx_release.records.base import Record
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.samples.edge_cases import read_npz
from onnx_release.samples.generate import make_samples
from onnx_release.samples.sample import Sample
from onnx_release.text import shorten
from onnx_release.trained.mlflow_model import read_example


@dataclass(frozen=True, slots=True)
class ReleasedModel:
    """Folder of a released model and its record."""

    folder: Path
    artifact: OnnxArtifact


class CompareOptions(Record):
    """Options of a comparison.

    Attributes:
        batch_sizes: The batch sizes to compare and to measure.
        limits: The limits on the difference between the outputs.
        plan: The length of the measurement; None: no measurement.
        budget: Its serving batch size.
        inputs_path: An ``.npz`` file of inputs, besides the example of the later model.
        lock: The lock of the host during the measurement.
    """

    batch_sizes: tuple[int, ...]
    limits: ParityLimits
    plan: MeasurePlan | None
    budget: LatencyBudget
    inputs_path: str | None = None
    lock: LockOptions


class ArtifactComparison(Record):
    """Result of a comparison.

    Attributes:
        contract: The differences that can break a client of the earlier model.
        parity: The differences between the outputs; None if they cannot be compared, for the reason in `problem`.
        latency: The times of the earlier model as the reference, and of the later one as the candidate.
        host: The host of the measurement; None without one.
        problem: The reason why the outputs could not be compared, else empty.
    """

    contract: tuple[str, ...]
    parity: ParityReport | None = None
    latency: tuple[BatchLatency, ...] = ()
    host: HostInfo | None = None
    problem: str = ""


def compare_artifacts(before: ReleasedModel, after: ReleasedModel, options: CompareOptions) -> ArtifactComparison:
    """Compare two released models. Models with another contract are not run.

    Args:
        before: The earlier model.
        after: The later model.
        options: The options of the comparison.

    Raises:
        ArtifactRefused: A folder has other bytes than its record.
        Refused: An option cannot be used.
    """
    for model in (before, after):
        require_bytes(model.folder, model.artifact)
    contract = tuple(Contract.of_artifact(before.artifact).differences(Contract.of_artifact(after.artifact)))
    if contract:
        return ArtifactComparison(contract=contract, problem="their inputs or outputs differ")
    samples = _samples(before, after, options)
    threads = options.plan.threads if options.plan else None
    host = describe_host() if options.plan else None
    try:
        with _open(before, threads) as first, _open(after, threads) as second:
            parity = compare_runners((first, second), samples, after.artifact, options.limits)
            if options.plan is None:
                return ArtifactComparison(contract=(), parity=parity)
            with HostLock(options.lock).held():
                # A user's inputs come first, then the example.
                sizes = {*options.batch_sizes, options.budget.batch_size}
                timed = {sample.batch_size: sample for sample in reversed(samples) if sample.batch_size in sizes}
                latency = measure_all(Sides(reference=first, candidate=second), timed, options.plan, options.budget)
    except ParityRefused:
        raise
    except Refused as refusal:
        return ArtifactComparison(contract=(), problem=shorten(refusal))
    return ArtifactComparison(contract=(), parity=parity, latency=latency, host=host)


def _samples(before: ReleasedModel, after: ReleasedModel, options: CompareOptions) -> list[Sample]:
    """Return the inputs of both. They fit the earlier model, whose dimensions may be fixed."""
    inputs = before.artifact.inputs
    sizes = sorted({*options.batch_sizes, options.budget.batch_size})
    samples = make_samples(inputs, read_example(after.folder), sizes)
    if options.inputs_path is not None:
        samples.insert(0, read_npz(Path(options.inputs_path), inputs, options.inputs_path))
    return samples


def _open(model: ReleasedModel, threads: int | None) -> OnnxRuntimeRunner:
    options = OnnxRuntimeOptions(threads=threads or usable_cpus(), session_options=model.artifact.session_options)
    return OnnxRuntimeRunner(model.folder / MODEL_FILE, options)
