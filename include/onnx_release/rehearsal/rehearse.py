"""Rehearsal of released models in other versions of ONNX Runtime, beside the present one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

from onnx_release.artifact.digests import require_bytes
from onnx_release.errors import Refused, ReleaseError, RunnerRefused
from onnx_release.latency.host import describe_host, usable_cpus
from onnx_release.latency.host_lock import HostLock, LockOptions
from onnx_release.latency.measure import Sides, measure
from onnx_release.limits import MODEL_FILE, PICKLE_MEMORY_SHARE, TARGET_RUNTIME_MAX_S, MeasurePlan, ParityLimits
from onnx_release.parity.limits import limits_of_release
from onnx_release.parity.stored_reference import compare_stored
from onnx_release.records import OnnxArtifact, OutputParity, ReleaseReport
from onnx_release.records.rehearsal import RehearsedModel, RehearsedRuntime, Runtime, RuntimeLatency
from onnx_release.rehearsal.first_node import all_same_bits, first_node
from onnx_release.rehearsal.runtimes import open_runtime
from onnx_release.runners.descendants import machine_bytes
from onnx_release.samples.generate import make_samples
from onnx_release.samples.reference import Case, read_reference
from onnx_release.samples.sample import Sample
from onnx_release.serving.runtime_environment import RuntimeEnvironment, installed_version
from onnx_release.serving.runtime_process import RuntimeEnded, RuntimeProcess, RuntimeRunner, readable
from onnx_release.text import shorten
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.mlflow_model import read_example

_log = logging.getLogger(__name__)
# Enough for a settled ratio of most models; a rehearsal has many.
PLAN = MeasurePlan(measure_min_s=1.0, measure_max_s=6.0)
_INVENTED_SIZES = (1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedFolder:
    """Folder of a released model, its record, and the parity limits of its release."""

    name: str
    folder: Path
    artifact: OnnxArtifact
    limits: ParityLimits

    @classmethod
    def of_report(cls, name: str, folder: Path, artifact: OnnxArtifact, report: ReleaseReport) -> Self:
        """Return a released model with the limits in the report of its release."""
        return cls(name=name, folder=folder, artifact=artifact, limits=limits_of_release(report))


@dataclass(frozen=True, slots=True)
class OpenedRuntime:
    """Runtime with its environment, or with the reason why it has none."""

    runtime: Runtime
    environment: RuntimeEnvironment | None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalOptions:
    """Options of a rehearsal.

    Attributes:
        plan: The duration of each measurement; None: no measurement.
        lock: The lock of the host during a measurement.
        timeout_s: The longest run of one model in one runtime, without the measurement.
        memory_bytes: The memory limit of the process of a runtime; None: a share of the machine's memory.
    """

    plan: MeasurePlan | None = PLAN
    lock: LockOptions = field(default_factory=LockOptions)
    timeout_s: float = TARGET_RUNTIME_MAX_S
    memory_bytes: int | None = None


def open_runtimes(runtimes: Sequence[Runtime], folder: Path) -> tuple[OpenedRuntime, ...]:
    """Return all runtimes. One without an environment has its reason, and the others go on.

    Args:
        runtimes: The runtimes.
        folder: The folder with the environments of this worker.
    """
    opened = []
    for runtime in runtimes:
        try:
            opened.append(OpenedRuntime(runtime, open_runtime(runtime, folder)))
        except ReleaseError as error:
            _log.warning("%s", error)
            opened.append(OpenedRuntime(runtime, None, f"{error.subject} {error.problem}"))
    return tuple(opened)


def present_version() -> str:
    """Return the version of ONNX Runtime in this process."""
    return installed_version() or "unknown"


def rehearse_model(
    model: ReleasedFolder, runtimes: Sequence[OpenedRuntime], options: RehearsalOptions
) -> RehearsedModel:
    """Run one model in the present runtime and in each other one, each in a process of its own.

    No fault of the model or of a runtime raises: each is a result that names it.

    Args:
        model: The released model.
        runtimes: The other runtimes.
        options: The options of the rehearsal.
    """
    found = RehearsedModel(
        name=model.name, sha256=model.artifact.sha256, present=present_version(), host=describe_host()
    )
    try:
        require_bytes(model.folder, model.artifact)
        rehearsal = ModelRehearsal(model=model, options=options)
        rehearsal.run_present()
    except Refused as refusal:
        return found.replace(problem=shorten(refusal, 600))
    except RuntimeEnded as ended:
        return found.replace(problem=f"{model.name} {ended.problem} in the present ONNX Runtime {found.present}")
    results = []
    for opened in runtimes:
        result = rehearsal.in_runtime(opened)
        results.append(result)
        _log.info("%s in ONNX Runtime %s: %s. %s", model.name, result.runtime, result.verdict, result.problem)
    return found.replace(samples=len(rehearsal.cases), runtimes=tuple(results), notes=tuple(rehearsal.notes))


@dataclass(kw_only=True)
class ModelRehearsal:
    """Rehearsal of one model. `cases` has the samples that the present runtime runs, with its outputs."""

    model: ReleasedFolder
    options: RehearsalOptions
    cases: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def stored(self) -> list[Case] | None:
        """The samples with PyTorch's outputs; None for a release without them."""
        return read_reference(self.model.folder)

    @cached_property
    def present(self) -> RuntimeEnvironment:
        """The environment of this process."""
        return RuntimeEnvironment(version=present_version(), python=sys.executable, is_own=True)

    def run_present(self) -> None:
        """Run all samples in the present runtime, twice.

        Raises:
            Refused: The present runtime does not load the model, or runs no sample.
            RuntimeEnded: Its process crashed, or did not end in time.
        """
        with self._process(self.present) as process:
            if error := self._open(process):
                raise self._refused(f"is not loaded by the present ONNX Runtime {process.version}: {error}")
            runner = RuntimeRunner(process, [outputs for _, outputs in self.stored or ()])
            pairs = []
            for sample in self._samples():
                try:
                    pairs.append((runner.run(sample.inputs), runner.run(sample.inputs)))
                    self.cases.append((sample, pairs[-1][0]))
                except RunnerRefused as refusal:
                    where = f"'{sample.name}' at batch size {sample.batch_size}"
                    self.notes.append(f"{where} is left out: {refusal.problem}")
        if not any(sample.decides for sample, _ in self.cases):
            raise self._refused(f"runs no sample in the present ONNX Runtime: {'; '.join(self.notes)}")
        if not all_same_bits(pairs):
            self.notes.append("the present runtime alone returns other bits in each run")

    def in_runtime(self, opened: OpenedRuntime) -> RehearsedRuntime:
        """Run all samples in another runtime, compare, and measure."""
        name, environment = opened.runtime.name, opened.environment
        if environment is None:
            return RehearsedRuntime(runtime=name, problem=opened.problem)
        result = RehearsedRuntime(runtime=name, version=environment.version)
        process = self._process(environment)
        try:
            with process:
                if rejected := self._open(process):
                    return result.replace(verdict="does not load", problem=rejected)
                if process.version != environment.version:
                    return result.replace(problem=f"the environment has the version {process.version}")
                runner = RuntimeRunner(process, [outputs for _, outputs in self.cases])
                outputs = [runner.run(sample.inputs) for sample, _ in self.cases]
                result = self._timed(self._compared(result, outputs), runner)
        except RunnerRefused as refusal:
            return result.replace(verdict="does not run", problem=refusal.problem)
        except RuntimeEnded as ended:
            return _ended(result, process, ended)
        if result.verdict == "bit-equal":
            return result
        try:
            node = first_node(
                self.model.folder, self._differing(outputs), self.present, environment, threads=self._threads
            )
        except ReleaseError as error:
            return _noted(result, f"the node is unknown: {error.subject} {error.problem}")
        return result.replace(node=node)

    def _samples(self) -> Iterator[Sample]:
        """Yield the stored samples. A release without them has its example, and invented samples."""
        if self.stored is not None:
            yield from (sample for sample, _ in self.stored)
            return
        self.notes.append("the release stored no outputs of PyTorch: only the two runtimes are compared")
        yield from make_samples(self.model.artifact.inputs, read_example(self.model.folder), list(_INVENTED_SIZES))

    def _compared(self, result: RehearsedRuntime, outputs: Sequence[Arrays]) -> RehearsedRuntime:
        """Compare with the present runtime and with PyTorch."""
        found = compare_stored(_Recorded(outputs), self.cases, self.model.limits)
        is_equal = all_same_bits([(ours, theirs) for (_, ours), theirs in zip(self.cases, outputs, strict=True)])
        result = result.replace(
            verdict="changes" if found.failures else "bit-equal" if is_equal else "within limits",
            problem=shorten("; ".join(found.failures), 600),
            compared=len(found.compared),
            difference=_largest(found.compared),
        )
        if self.stored is None:
            return result
        run = {(sample.name, sample.batch_size): other for (sample, _), other in zip(self.cases, outputs, strict=True)}
        stored = [case for case in self.stored if (case[0].name, case[0].batch_size) in run]
        recorded = _Recorded([run[sample.name, sample.batch_size] for sample, _ in stored])
        found = compare_stored(recorded, stored, self.model.limits)
        return result.replace(
            reference="failed" if found.failures else "passed",
            reference_difference=_largest(found.compared),
            note="; ".join(f"PyTorch: {failure}" for failure in found.failures[:1]),
        )

    def _timed(self, result: RehearsedRuntime, runner: RuntimeRunner) -> RehearsedRuntime:
        """Add the latency, or the reason why there is none: a lock that is held for too long, or an endless call."""
        if self.options.plan is None:
            return result
        try:
            return result.replace(latency=self._latency(runner, self.options.plan))
        except (ReleaseError, RuntimeEnded) as error:
            return _noted(result, f"no latency: {error.problem}")

    def _latency(self, runner: RuntimeRunner, plan: MeasurePlan) -> RuntimeLatency:
        """Time the open model beside the present runtime, in the same rounds."""
        deciding = [sample for sample, _ in self.cases if sample.decides]
        sample = min(deciding, key=lambda one: one.batch_size)
        with self._process(self.present) as process:
            if error := self._open(process):
                raise self._refused(f"is not loaded by the present ONNX Runtime: {error}")
            with HostLock(self.options.lock).held():
                runner.process.restart_clock()
                process.restart_clock()
                # The ratio is that of the reference's median to the candidate's.
                found = measure(Sides(reference=runner, candidate=RuntimeRunner(process)), sample, plan)
        return RuntimeLatency(
            batch_size=sample.batch_size,
            present_p50_ms=found.candidate.p50_ms,
            p50_ms=found.reference.p50_ms,
            ratio=found.speedup,
            ratio_low=found.speedup_low,
            ratio_high=found.speedup_high,
            confidence=found.confidence,
            rounds=found.rounds,
            settled=found.conclusive,
        )

    def _differing(self, outputs: Sequence[Arrays]) -> Sample:
        """Return the first sample with other outputs, one that decides before the others."""
        pairs = zip(self.cases, outputs, strict=True)
        differing = [sample for (sample, ours), theirs in pairs if not all_same_bits([(ours, theirs)])]
        return min(differing, key=lambda sample: not sample.decides)

    @property
    def _threads(self) -> int:
        given = self.model.artifact.session_options.get("intra_op_num_threads")
        plan = self.options.plan
        return given or (plan.threads if plan else None) or usable_cpus()

    def _process(self, environment: RuntimeEnvironment) -> RuntimeProcess:
        memory = self.options.memory_bytes or int(PICKLE_MEMORY_SHARE * machine_bytes())
        return RuntimeProcess(environment, self.options.timeout_s, memory)

    def _open(self, process: RuntimeProcess) -> str | None:
        config = self.model.artifact.session_options.get("extra_session_config", {})
        # Threads that spin after a call take the CPU from the other process.
        config = {**config, "session.force_spinning_stop": "1"}
        return process.open(self.model.folder / MODEL_FILE, self._threads, config)

    def _refused(self, problem: str) -> RunnerRefused:
        action = "Verify it: onnx-release verify."
        return RunnerRefused(f"The model {self.model.name}", problem, action, code="onnxruntime_rejected")


class _Recorded:
    """Runner that returns outputs of an earlier run, in their order."""

    name = "ONNX Runtime"

    def __init__(self, outputs: Sequence[Arrays]) -> None:
        self._outputs = iter(outputs)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the next outputs."""
        return next(self._outputs)

    def __enter__(self) -> _Recorded:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def _noted(result: RehearsedRuntime, note: str) -> RehearsedRuntime:
    return result.replace(note="; ".join(filter(None, (result.note, note))))


def _largest(compared: Sequence[OutputParity]) -> float | None:
    found = [one.measures.max_abs for one in compared if one.decides and one.measures.max_abs is not None]
    return max(found, default=None)


def _ended(result: RehearsedRuntime, process: RuntimeProcess, ended: RuntimeEnded) -> RehearsedRuntime:
    """Return the result of a runtime whose process has ended, or did not answer."""
    if ended.returncode is not None and ended.returncode >= 0:
        # ONNX Runtime itself ends by a signal. A worker without disk, or a damaged environment, ends otherwise.
        problem = f"the environment is damaged, delete its folder: {readable(ended.output[-300:])}"
        return result.replace(verdict="not rehearsed", problem=problem)
    return result.replace(verdict="does not run" if process.version else "does not load", problem=ended.problem)
