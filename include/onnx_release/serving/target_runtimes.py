"""Comparison of an artifact in other versions of ONNX Runtime with PyTorch's outputs."""

from __future__ import annotations

import json
import logging
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_release.errors import RunnerRefused, shorten, without_folders
from onnx_release.limits import MODEL_FILE, TARGET_RUNTIME_MAX_S, ParityLimits
from onnx_release.parity.compare_outputs import compare_outputs
from onnx_release.parity.scales import output_scales
from onnx_release.records import Measures, OnnxArtifact, OutputParity, RuntimeReport
from onnx_release.runners.child_process import (
    clean_environment,
    describe_exit,
    raise_if_ended_from_outside,
    run_guarded,
)
from onnx_release.samples.sample import Sample
from onnx_release.scratch import scratch_folder
from onnx_release.serving import run_in_runtime
from onnx_release.serving.runtime_environment import RuntimeEnvironment
from onnx_release.trained.arrays import Arrays

_log = logging.getLogger(__name__)
# A place in the source code of ONNX Runtime, with the signature of the function.
_SOURCE_PLACE = re.compile(r"\s?/\S*onnxruntime_src/.*?\)\s+(?=[A-Z])", re.DOTALL)


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
        with scratch_folder() as scratch:
            result = self._results(environment, scratch)
            if isinstance(result, str):
                return self._report(environment, [result])
            if not result["loads"]:
                return self._report(environment, [f"does not load the model: {_readable(result['error'])}"])
            compared, failures, warnings = self._compare(result, scratch)
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

    def _results(self, environment: RuntimeEnvironment, scratch: Path) -> dict[str, Any] | str:
        """Run the model on every sample in the environment. Return the script's result, or a failure of the process."""
        options = self.artifact.session_options
        request = {
            "model": str((self.folder / MODEL_FILE).resolve()),
            "threads": options.get("intra_op_num_threads", self.threads),
            "config": options.get("extra_session_config", {}),
            "cases": [list(sample.inputs) for sample, _ in self.expected],
        }
        for index, (sample, _) in enumerate(self.expected):
            np.savez(scratch / f"{index}.npz", *sample.inputs.values())
        path, script = scratch / "request.json", Path(run_in_runtime.__file__).resolve()
        path.write_text(json.dumps(request))
        # The environment of the worker itself needs its import path; another one must not get it.
        command = [environment.python, *([] if environment.is_own else ["-I"]), str(script), str(path)]
        try:
            done = run_guarded(command, clean_environment(str(scratch)), scratch, self.timeout_s)
        except subprocess.TimeoutExpired:
            return f"does not run the samples within {self.timeout_s:g} s"
        if (scratch / "result.json").exists():
            result: dict[str, Any] = json.loads((scratch / "result.json").read_text())
            if result["version"] != environment.version:
                raise _damaged(environment, f"it has the version {result['version']}")
            return result
        output = " ".join(done.stdout.split())
        raise_if_ended_from_outside("The process of ONNX Runtime", done.returncode, output)
        if done.returncode > 0:
            raise _damaged(environment, shorten(output[-300:]))
        return f"crashes on the model: its process {describe_exit(done.returncode)}"

    def _compare(self, result: dict[str, Any], scratch: Path) -> tuple[list[OutputParity], list[str], list[str]]:
        compared: list[OutputParity] = []
        failures: list[str] = []
        warnings: list[str] = []
        scales = output_scales(self.expected)
        for index, (sample, reference) in enumerate(self.expected):
            where = f"'{sample.name}' at batch size {sample.batch_size}"
            if error := result["cases"][index]:
                (failures if sample.decides else warnings).append(f"fails on {where}: {_readable(error)}")
                continue
            candidate = _read(scratch / f"out-{index}.npz", result["outputs"], reference)
            for one in compare_outputs(reference, candidate, sample, self.limits, scales):
                compared.append(one)
                if not one.passed:
                    text = f"output '{one.output}' on {where}: {'; '.join(one.failures)}"
                    (failures if sample.decides else warnings).append(text)
        return compared, failures, warnings


def _read(path: Path, names: Sequence[str], reference: Arrays) -> Arrays:
    """Read the outputs. numpy stores a dtype that it lacks, such as bfloat16, as plain bytes."""
    with np.load(path, allow_pickle=False) as archive:
        outputs = {name: archive[f"arr_{position}"] for position, name in enumerate(names)}
    for name, array in outputs.items():
        dtype = reference[name].dtype if name in reference else array.dtype
        if array.dtype.kind == "V" and array.dtype.itemsize == dtype.itemsize:
            outputs[name] = array.view(dtype)
    return outputs


def _readable(error: str) -> str:
    """Return the text of ONNX Runtime's error, without the places in its source code and the folders of the worker."""
    return shorten(without_folders(_SOURCE_PLACE.sub(" ", error)), 400)


def _damaged(environment: RuntimeEnvironment, problem: str) -> RunnerRefused:
    return RunnerRefused(
        f"The environment of ONNX Runtime {environment.version}",
        f"is damaged: {problem}",
        "Delete it from the cache folder of the worker, and clear the task.",
        code="runtime_unavailable",
    )
