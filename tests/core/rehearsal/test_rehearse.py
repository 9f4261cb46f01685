"""A rehearsal: each model in each runtime has a result that names both, and a failure of one stops no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnx_release.artifact.digests import describe_folder, folder_sha256
from onnx_release.limits import MODEL_FILE, MeasurePlan, ParityLimits
from onnx_release.records.rehearsal import Runtime
from onnx_release.rehearsal.rehearse import (
    ModelRehearsal,
    OpenedRuntime,
    RehearsalOptions,
    ReleasedFolder,
    open_runtimes,
    rehearse_model,
)
from onnx_release.samples.reference import read_reference, write_reference
from onnx_release.serving.runtime_environment import RuntimeEnvironment, installed_version
from tests.core.conftest import Exported
from tests.core.rehearsal.runtimes import differing_python, python_of

QUICK = RehearsalOptions(plan=None)


def _model(exported: Exported, limits: ParityLimits | None = None) -> ReleasedFolder:
    limits = limits or ParityLimits()
    return ReleasedFolder(name="net v1", folder=exported.folder, artifact=exported.artifact, limits=limits)


def _opened(folder: Path, python: Path) -> OpenedRuntime:
    (opened,) = open_runtimes([Runtime(name="other", python=str(python))], folder)
    return opened


def test_the_present_version_is_bit_equal_and_another_kernel_is_named_by_its_node(
    released: Exported, tmp_path: Path
) -> None:
    runtimes = open_runtimes([Runtime(name="own", version=installed_version())], tmp_path)
    plan = MeasurePlan(measure_min_s=0.1, measure_max_s=0.5)
    found = rehearse_model(
        _model(released), [*runtimes, _opened(tmp_path, differing_python(tmp_path))], RehearsalOptions(plan=plan)
    )
    own, other = found.runtimes
    assert (found.problem, own.verdict, own.difference, own.node) == ("", "bit-equal", 0.0, None)
    assert own.latency
    assert own.latency.ratio_low <= own.latency.ratio <= own.latency.ratio_high
    assert (own.reference, other.verdict, other.reference) == ("passed", "changes", "failed")
    assert other.difference
    assert other.node
    assert (other.node.op_type, other.node.note) == ("Relu", None)
    assert "positions" in other.problem


def test_a_difference_within_the_limits_is_no_change(released: Exported, tmp_path: Path) -> None:
    wide = ParityLimits(mae_max=100.0, sqnr_min_db=None, agreement_min=None, uncertainty_max=None)
    python = differing_python(tmp_path)
    (result,) = rehearse_model(_model(released, wide), [_opened(tmp_path, python)], QUICK).runtimes
    assert (result.verdict, result.problem) == ("within limits", "")
    assert result.node
    assert result.node.op_type == "Relu"


def test_stored_outputs_of_pytorch_are_compared_too(exported: Exported, tmp_path: Path) -> None:
    cases = read_reference(exported.folder)
    assert cases
    for _, outputs in cases:
        outputs["positions"] += np.float32(1)
    write_reference(exported.folder, cases)
    files = describe_folder(exported.folder)
    changed = Exported(exported.folder, exported.artifact.replace(files=files, sha256=folder_sha256(files)))
    runtimes = open_runtimes([Runtime(name="own", version=installed_version())], tmp_path)
    (result,) = rehearse_model(_model(changed), runtimes, QUICK).runtimes
    assert (result.verdict, result.reference) == ("bit-equal", "failed")
    assert result.reference_difference == pytest.approx(1, rel=1e-4)


@pytest.fixture(scope="module")
def rehearsal(released: Exported) -> ModelRehearsal:
    """A rehearsal after its run in the present runtime, with short limits for the others."""
    made = ModelRehearsal(model=_model(released), options=QUICK)
    made.run_present()
    made.options = RehearsalOptions(plan=None, timeout_s=0.5)
    return made


@pytest.mark.parametrize(
    ("script", "verdict", "part"),
    [
        ("kill -SEGV $$", "does not load", "SIGSEGV"),
        ("kill -KILL $$", "does not load", "SIGKILL"),
        ("sleep 60", "does not load", "within 0.5 s"),
        ("while true; do echo yes; done", "does not load", "within 0.5 s"),
        ("echo ImportError: libfoo; exit 1", "not rehearsed", "libfoo"),
    ],
    ids=["crash", "killed", "endless", "noise", "damaged"],
)
def test_a_runtime_that_fails_is_a_result(
    rehearsal: ModelRehearsal, tmp_path: Path, script: str, verdict: str, part: str
) -> None:
    environment = RuntimeEnvironment(version="1.2.3", python=str(python_of(tmp_path, script)))
    result = rehearsal.in_runtime(OpenedRuntime(Runtime(name="1.2.3", version="1.2.3"), environment))
    assert (result.runtime, result.verdict) == ("1.2.3", verdict)
    assert part in result.problem


def test_changed_files_are_refused_before_a_runtime_starts(exported: Exported) -> None:
    with (exported.folder / MODEL_FILE).open("ab") as file:
        file.write(b" ")
    found = rehearse_model(_model(exported), [], QUICK)
    assert MODEL_FILE in found.problem
    assert found.runtimes == ()
