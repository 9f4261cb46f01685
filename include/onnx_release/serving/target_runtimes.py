"""Comparison of an artifact in other versions of ONNX Runtime with PyTorch's outputs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx_release.errors import RunnerRefused
from onnx_release.limits import MODEL_FILE, TARGET_RUNTIME_MAX_S, ParityLimits
from onnx_release.parity.compare_outputs import compare_outputs
from onnx_release.parity.scales import output_scales
from onnx_release.records import Measures, OnnxArtifact, OutputParity, RuntimeReport
from onnx_release.runners.child_process import raise_if_ended_from_outside
from onnx_release.samples.sample import Sample
from onnx_release.serving.runtime_environment import RuntimeEnvironment
from onnx_release.serving.runtime_process import RuntimeEnded, RuntimeProcess, RuntimeRunner
from onnx_release.text import shorten
from onnx_release.trained.arrays import Arrays

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeComparison:
    """Comparison of one artifact in several versions of ONNX Runtime, one after the other, each in a process.

    Attributes:
        artifact: The record of the artifact.
        folder: Its folder.
        expected: Samples with PyTorch's outputs.
        limits: The parity limits.
        threads: The threads of a session.
        timeout_s: The longest run of one version.
    """

    artifact: OnnxArtifact
    folder: Path
    expected: Sequence[tuple[Sample, Arrays]]
    limits: ParityLimits
    threads: int
    timeout_s: float = TARGET_RUNTIME_MAX_S

    def run(self, environment: RuntimeEnvironment) -> RuntimeReport:
        """Return the report of one version. A model that it does not load or run is a failure in the report.

        Raises:
            RunnerRefused: `runtime_unavailable`, if the environment is damaged.
            Transient: The process was killed, or the worker lacks memory or disk.
        """
        try:
            with RuntimeProcess(environment, self.timeout_s) as process:
                options = self.artifact.session_options
                threads = options.get("intra_op_num_threads", self.threads)
                error = process.open(self.folder / MODEL_FILE, threads, options.get("extra_session_config", {}))
                if process.version != environment.version:
                    raise damaged(environment, f"it has the version {process.version}")
                if error is not None:
                    return self._report(environment, [f"does not load the model: {error}"])
                compared, failures, warnings = self._compare(process)
        except RuntimeEnded as ended:
            return self._report(environment, [_failure(environment, ended)])
        found: dict[str, list[Measures]] = {}
        for one in compared:
            if one.decides and one.has_values:
                found.setdefault(one.output, []).append(one.measures)
        report = RuntimeReport(
            sha256=self.artifact.sha256,
            version=environment.version,
            loads=True,
            passed=not failures and any(one.decides for one in compared),
            compared=len(compared),
            worst={output: Measures.worst(every) for output, every in found.items()},
            failures=tuple(failures),
            warnings=tuple(warnings),
        )
        _log.info("ONNX Runtime %s: %d outputs compared, %d failed.", report.version, len(compared), len(failures))
        return report

    def _report(self, environment: RuntimeEnvironment, failures: list[str]) -> RuntimeReport:
        _log.info("ONNX Runtime %s %s.", environment.version, failures[0])
        return RuntimeReport(sha256=self.artifact.sha256, version=environment.version, failures=tuple(failures))

    def _compare(self, process: RuntimeProcess) -> tuple[list[OutputParity], list[str], list[str]]:
        compared: list[OutputParity] = []
        failures: list[str] = []
        warnings: list[str] = []
        scales = output_scales(self.expected)
        runner = RuntimeRunner(process, [reference for _, reference in self.expected])
        for sample, reference in self.expected:
            where = f"'{sample.name}' at batch size {sample.batch_size}"
            try:
                candidate = runner.run(sample.inputs)
            except RunnerRefused as refusal:
                (failures if sample.decides else warnings).append(f"fails on {where}: {refusal.problem}")
                continue
            for one in compare_outputs(reference, candidate, sample, self.limits, scales):
                compared.append(one)
                if not one.passed:
                    text = f"output '{one.output}' on {where}: {'; '.join(one.failures)}"
                    (failures if sample.decides else warnings).append(text)
        return compared, failures, warnings


def _failure(environment: RuntimeEnvironment, ended: RuntimeEnded) -> str:
    """Return the end of a process as a failure of the artifact. Raise if the artifact is not at fault."""
    if ended.returncode is None:
        return ended.problem
    raise_if_ended_from_outside("The process of ONNX Runtime", ended.returncode, ended.output)
    if ended.returncode > 0:
        raise damaged(environment, shorten(ended.output[-300:]))
    return ended.problem


def damaged(environment: RuntimeEnvironment, problem: str) -> RunnerRefused:
    """Return the refusal of an environment that does not run."""
    return RunnerRefused(
        f"The environment of ONNX Runtime {environment.version}",
        f"is damaged: {problem}",
        "Delete it from the cache folder of the worker, and clear the task.",
        code="runtime_unavailable",
    )
