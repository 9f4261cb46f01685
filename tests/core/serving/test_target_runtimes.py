"""Target versions of ONNX Runtime: each loads the artifact and returns the reference's outputs, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_release.errors import Transient
from onnx_release.limits import MODEL_FILE, ParityLimits
from onnx_release.records import RuntimeReport
from onnx_release.report.acceptance import report_failures
from onnx_release.report.gates import gates
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.samples.generate import make_samples
from onnx_release.serving.runtime_environment import RuntimeEnvironment, installed_version, prepare_environments
from onnx_release.serving.target_runtimes import RuntimeComparison
from onnx_release.trained.mlflow_model import read_example
from tests.core import records
from tests.core.conftest import Exported
from tests.core.serving.test_runtime_environment import REJECTING, index  # noqa: F401 - a fixture
from tests.refusals import refused


def _comparison(exported: Exported, **changes: Any) -> RuntimeComparison:
    artifact = exported.artifact
    samples = make_samples(artifact.inputs, read_example(exported.folder), [1, 3])
    with OnnxRuntimeRunner(exported.folder / MODEL_FILE, OnnxRuntimeOptions(threads=1)) as runner:
        expected = [(sample, runner.run(sample.inputs)) for sample in samples]
    arguments = {"expected": expected, "limits": ParityLimits(), "threads": 1} | changes
    return RuntimeComparison(artifact=artifact, folder=exported.folder, **arguments)


@pytest.fixture
def own() -> RuntimeEnvironment:
    (environment,) = prepare_environments([installed_version()], Path("/none"))
    return environment


def test_a_version_that_runs_the_model_passes(released: Exported, own: RuntimeEnvironment) -> None:
    comparison = _comparison(released)
    report = comparison.run(own)
    assert (report.loads, report.passed, report.failures) == (True, True, ())
    assert report.sha256 == released.artifact.sha256
    assert report.compared == len(comparison.expected) * 2
    assert set(report.worst) == {"positions", "uncertainties"}


def test_other_outputs_are_failures_with_their_place(released: Exported, own: RuntimeEnvironment) -> None:
    comparison = _comparison(released)
    sample, outputs = comparison.expected[0]
    wrong = {**outputs, "positions": outputs["positions"] + np.float32(1)}
    report = _comparison(released, expected=[(sample, wrong)]).run(own)
    assert (report.loads, report.passed) == (True, False)
    assert "'positions'" in report.failures[0]
    assert sample.name in report.failures[0]


def test_no_compared_output_is_no_pass(released: Exported, own: RuntimeEnvironment) -> None:
    assert not _comparison(released, expected=[]).run(own).passed


def test_a_version_that_rejects_the_model_is_a_failure_with_its_reason(
    released: Exported,
    index: Path,  # noqa: F811 - the fixture
    tmp_path: Path,
) -> None:
    (environment,) = prepare_environments([REJECTING], tmp_path / "cache")
    report = _comparison(released).run(environment)
    assert (report.loads, report.passed) == (False, False)
    expected = "Load model from model.onnx failed: Unsupported model IR version: 10, max supported IR version: 9"
    assert report.failures[0] == f"does not load the model: FAIL : {expected}"


@pytest.mark.parametrize(
    ("script", "failure"), [("kill -SEGV $$", "SIGSEGV"), ("sleep 60", "within 0.3 s")], ids=["crash", "endless"]
)
def test_a_crash_and_an_endless_run_are_failures(released: Exported, tmp_path: Path, script: str, failure: str) -> None:
    report = _comparison(released, timeout_s=0.3).run(_environment(tmp_path, script))
    assert not report.loads
    assert failure in report.failures[0]


def test_a_killed_process_and_a_damaged_environment_are_not_the_models_fault(
    released: Exported, tmp_path: Path, own: RuntimeEnvironment
) -> None:
    with pytest.raises(Transient):
        _comparison(released).run(_environment(tmp_path, "kill -KILL $$"))
    damaged = [
        _environment(tmp_path, "echo ImportError; exit 1"),
        RuntimeEnvironment(version="1.2.3", python=str(tmp_path / "none")),
        own.replace(version="1.2.3"),
    ]
    for environment in damaged:
        with refused("runtime_unavailable", environment.version) as caught:
            _comparison(released).run(environment)
        assert caught.value.is_of_deployment


def _environment(folder: Path, script: str) -> RuntimeEnvironment:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return RuntimeEnvironment(version="1.2.3", python=str(python))


def test_each_version_has_its_gates_and_its_reasons() -> None:
    runtimes = (
        RuntimeReport(sha256=records.SHA, version="1.17.3", failures=("does not load the model: IR 10",)),
        RuntimeReport(sha256=records.SHA, version="1.20.1", loads=True, failures=("output 'y': MAE 1",)),
        RuntimeReport(sha256=records.SHA, version="1.24.4", loads=True, passed=True),
    )
    benchmark = records.benchmark(runtimes=runtimes, passed=False)
    found = [(gate.subject[13:], gate.name, gate.verdict) for gate in gates(None, benchmark) if "runtime" in gate.name]
    assert found == [
        ("1.17.3", "runtime_loads", "refused"),
        ("1.20.1", "runtime_loads", "passed"),
        ("1.20.1", "runtime_parity", "refused"),
        ("1.24.4", "runtime_loads", "passed"),
        ("1.24.4", "runtime_parity", "passed"),
    ]
    assert report_failures(None, benchmark) == (
        "ONNX Runtime 1.17.3: does not load the model: IR 10",
        "ONNX Runtime 1.20.1: output 'y': MAE 1",
    )


def test_a_real_older_version_runs_the_artifact(released: Exported, tmp_path: Path) -> None:
    try:
        (environment,) = prepare_environments(["1.20.1"], tmp_path, timeout_s=120)
    except Transient as failure:
        pytest.skip(f"the package index does not answer: {failure}")
    report = _comparison(released).run(environment)
    assert (report.version, report.loads, report.passed, report.failures) == ("1.20.1", True, True, ())
