"""A trained model as MLflow saves it, its ONNX folder, and the report about both."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
import onnx
import pytest
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema
from mlflow.types import TensorSpec as MlflowTensorSpec
from onnx import numpy_helper

from onnx_release.artifact.digests import describe_folder, folder_sha256
from onnx_release.artifact.mlflow_package import PackageSpec, write_package
from onnx_release.benchmark.benchmark_model import BenchmarkOptions, benchmark_artifact, compare_artifact, gpu_note
from onnx_release.benchmark.champion import served_bytes
from onnx_release.benchmark.setup import ChampionOptions
from onnx_release.check.smoke_test import smoke_test
from onnx_release.limits import EXTERNAL_DATA_FILE, MODEL_FILE, REFERENCE_FILE, LatencyBudget, MeasurePlan, ParityLimits
from onnx_release.records import FileDigest, OnnxArtifact, ParityReport, TensorSpec
from onnx_release.report.acceptance import acceptance
from onnx_release.report.gates import gates
from onnx_release.runners.child_process import clean_environment
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from tests.core import records
from tests.refusals import refused

INPUTS = (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),)
OUTPUTS = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 2)) for name in ("mean", "spread"))
EXAMPLE = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
QUICK = MeasurePlan(threads=1, rounds_min=10, measure_min_s=0.0, measure_max_s=1.0, interval_width_max=99.0)
# The speed of a model this small means nothing; these tests are about the report.
# On a busy host the measurement may end without a settled speedup, which is a warning here.
ANY_SPEED = LatencyBudget(speedup_min=1e-6, speedup_goal=1e-6, on_miss="warn")
OPTIONS = BenchmarkOptions(batch_sizes=(1, 4), latency_budget=ANY_SPEED, measure_plan=QUICK)


class Net(torch.nn.Module):
    """Two outputs of one shape, which must not be confused, and a dropout that must be off."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(4, 8)
        self.heads = torch.nn.Linear(8, 4)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.heads(self.dropout(torch.relu(self.hidden(x))))
        return out[:, :2], out[:, 2:].exp()


@dataclasses.dataclass(frozen=True)
class Case:
    trained: Path
    folder: Path
    artifact: OnnxArtifact

    def benchmark(self, **changes: Any) -> Any:
        return benchmark_artifact(self.trained, self.folder, self.artifact, OPTIONS.replace(**changes))

    def compare(self) -> ParityReport:
        return compare_artifact(self.trained, self.folder, self.artifact, OPTIONS)


def _schema(specs: tuple[TensorSpec, ...]) -> Schema:
    return Schema([MlflowTensorSpec(np.dtype(s.dtype), (-1, *s.shape[1:]), s.name) for s in specs])


def _described(folder: Path) -> OnnxArtifact:
    files = describe_folder(folder)
    return records.artifact(
        sha256=folder_sha256(files),
        size_bytes=sum(file.size_bytes for file in files),
        files=files,
        inputs=INPUTS,
        outputs=OUTPUTS,
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    model = Net().eval()
    root = tmp_path_factory.mktemp("judged")
    mlflow.pytorch.save_model(
        model,
        root / "trained",
        signature=ModelSignature(inputs=_schema(INPUTS), outputs=_schema(OUTPUTS)),
        input_example=EXAMPLE,
        pip_requirements=[],
    )
    (root / "folder").mkdir()
    torch.onnx.export(
        model,
        (torch.from_numpy(EXAMPLE),),
        root / "folder" / MODEL_FILE,
        input_names=["x"],
        output_names=[spec.name for spec in OUTPUTS],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    versions = dict.fromkeys(("mlflow", "numpy", "onnx", "onnxruntime"), "1.0")
    write_package(
        root / "folder",
        PackageSpec(
            inputs=INPUTS,
            outputs=OUTPUTS,
            example={"x": EXAMPLE},
            providers=("CPUExecutionProvider",),
            tool_versions=versions,
        ),
    )
    return Case(root / "trained", root / "folder", _described(root / "folder"))


@pytest.fixture
def case(prepared: Case, tmp_path: Path) -> Case:
    """A copy of the prepared case that a test may change."""
    folder = shutil.copytree(prepared.folder, tmp_path / "folder")
    return dataclasses.replace(prepared, folder=folder)


def _edited(case: Case, edit: Any) -> Case:
    """Change the ONNX graph and describe the folder again: the bytes are as recorded, the model differs."""
    path = case.folder / MODEL_FILE
    model = onnx.load(path)
    edit(model.graph)
    (case.folder / EXTERNAL_DATA_FILE).unlink(missing_ok=True)
    onnx.save(model, path)
    return dataclasses.replace(case, artifact=_described(case.folder))


def _scale_weights(factor: float) -> Any:
    def edit(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.ndim == 2:
                tensor.CopyFrom(numpy_helper.from_array(values * np.float32(factor), tensor.name))

    return edit


def test_a_correct_export_passes_and_is_timed(prepared: Case) -> None:
    threads = torch.get_num_threads()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    report = prepared.benchmark()
    assert report.passed
    assert report.sha256 == report.parity.sha256 == report.latency.sha256 == prepared.artifact.sha256
    assert {c.output for c in report.parity.comparisons} == {"mean", "spread"}
    samples = {c.sample for c in report.parity.comparisons}
    assert samples == {"example", "seed 11", "seed 23", "zeros", "extremes"}
    assert report.parity.batch_sizes == (1, 2, 3, 4)
    assert report.parity.unseen_batch_sizes == (1, 3, 4)
    assert [b.batch_size for b in report.latency.batches] == [1, 4]
    assert report.latency.threads == 1
    assert report.latency.providers_active == ("CPUExecutionProvider",)
    assert torch.get_num_threads() == threads
    assert torch.backends.mha.get_fastpath_enabled() is fastpath


def test_the_serving_batch_size_is_always_measured(prepared: Case) -> None:
    budget = ANY_SPEED.replace(batch_size=3)
    report = prepared.benchmark(batch_sizes=(1,), latency_budget=budget)
    assert [b.batch_size for b in report.latency.batches] == [1, 3]
    assert 3 in report.parity.batch_sizes


def test_a_batch_size_other_than_that_of_the_export_is_added(prepared: Case) -> None:
    budget = ANY_SPEED.replace(batch_size=2)
    report = prepared.benchmark(batch_sizes=(2,), latency_budget=budget)
    assert report.parity.unseen_batch_sizes == (3,)
    assert [b.batch_size for b in report.latency.batches] == [2]


def test_a_missed_budget_refuses_and_the_report_keeps_the_measurements(prepared: Case) -> None:
    report = prepared.benchmark(latency_budget=LatencyBudget(speedup_min=1e6, speedup_goal=1e6))
    assert (report.passed, report.parity.passed, report.latency.verdict) == (False, True, "refused")
    assert report.latency.batches
    assert prepared.benchmark(latency_budget=LatencyBudget(speedup_min=1e6, speedup_goal=1e6, on_miss="warn")).passed


def test_other_weights_fail_parity_and_are_not_timed(case: Case) -> None:
    report = _edited(case, _scale_weights(1.01)).benchmark()
    assert not report.passed
    assert report.latency is None
    assert any("output 'mean'" in why and "MAE" in why for why in report.parity.failures)
    assert report.parity.comparisons


def test_the_caller_may_loosen_the_limits(case: Case) -> None:
    loose = ParityLimits(mae_max=None, per_dtype={"float32": {"max_abs": 1.0}})
    assert _edited(case, _scale_weights(1.0001)).benchmark(parity_limits=loose).passed


def test_nan_only_in_the_onnx_model_fails(case: Case) -> None:
    report = _edited(case, _scale_weights(float("nan"))).benchmark()
    assert not report.passed
    assert any("NaN" in why for why in report.parity.failures)


def test_a_missing_output_fails_with_its_name(case: Case) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        del graph.output[1]

    report = _edited(case, edit).benchmark()
    assert not report.passed
    assert any("'spread'" in why and "ONNX Runtime does not" in why for why in report.parity.failures)


def test_swapped_output_names_fail(case: Case) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        swapped = copy.deepcopy([graph.output[1], graph.output[0]])
        names = {"mean": "spread", "spread": "mean"}
        for node in graph.node:
            for at, name in enumerate(node.output):
                node.output[at] = names.get(name, name)
        del graph.output[:]
        graph.output.extend(swapped)

    report = _edited(case, edit).benchmark()
    assert not report.passed
    assert ["output 'mean'" in why or "output 'spread'" in why for why in report.parity.failures] == [True, True]


def test_an_input_of_another_name_fails_with_the_message_of_onnx_runtime(case: Case) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        graph.input[0].name = "z"
        for node in graph.node:
            for at, name in enumerate(node.input):
                node.input[at] = "z" if name == "x" else name

    report = _edited(case, edit).benchmark()
    assert not report.passed
    assert "nothing was compared" in report.parity.failures
    assert any("ONNX Runtime" in why for why in report.parity.failures)


def test_a_session_that_does_not_open_is_a_failure_in_both_reports(case: Case) -> None:
    (case.folder / MODEL_FILE).write_bytes(b"no model")
    case = dataclasses.replace(case, artifact=_described(case.folder))
    report = case.benchmark()
    assert not report.passed
    assert report.latency is None
    assert case.compare() == report.parity
    assert "is not accepted by ONNX Runtime" in report.parity.failures[0]


def test_changed_bytes_are_refused_before_anything_runs(case: Case) -> None:
    (case.folder / MODEL_FILE).write_bytes(b"other bytes")
    with refused("changed_files", "model.onnx"):
        case.benchmark()
    with refused("changed_files", "model.onnx"):
        smoke_test(case.folder, case.artifact)


def test_a_record_whose_sha256_differs_from_its_files_is_refused(case: Case) -> None:
    artifact = case.artifact.replace(sha256="0" * 64)
    with refused("wrong_sha256", "0" * 64):
        dataclasses.replace(case, artifact=artifact).benchmark()


@pytest.mark.parametrize(
    ("changes", "code", "value"),
    [
        ({"batch_sizes": (0,)}, "batch_sizes", "[0, 1]"),
        ({"parity_limits": ParityLimits(per_output={"maen": {}})}, "wrong_limits", "'maen'"),
        ({"measure_plan": MeasurePlan(threads=0)}, "invalid_latency_options", "threads is 0"),
        ({"precision_limits": {"int4": {}}}, "unknown_precision", "'int4'"),
    ],
)
def test_options_without_a_meaning_are_refused(prepared: Case, changes: dict[str, Any], code: str, value: str) -> None:
    with refused(code, value):
        prepared.benchmark(**changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_package_for_a_gpu_is_refused_on_a_cpu(case: Case) -> None:
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    packaged = dataclasses.replace(case, artifact=case.artifact.replace(providers=providers))
    with refused("no_cuda", "CUDAExecutionProvider", "worker with a GPU"):
        packaged.benchmark()


def test_the_smoke_test_accepts_a_good_folder_and_does_not_change_it(case: Case) -> None:
    smoke_test(case.folder, case.artifact)
    assert describe_folder(case.folder) == case.artifact.files


def test_a_difference_on_a_gpu_names_tf32_unless_it_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    assert "TF32" in gpu_note()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert "TF32" not in gpu_note()
    assert "NVIDIA_TF32_OVERRIDE" in clean_environment("/nowhere"), "the process of the export's trial needs it too"


def test_the_smoke_test_lists_every_output_that_differs_from_the_record(case: Case) -> None:
    outputs = (
        TensorSpec(name="mean", dtype="float64", shape=("batch", 3)),
        TensorSpec(name="lost", dtype="float32", shape=("batch", 2)),
    )
    parts = (
        "'mean' has dtype float32, not float64",
        "[2, 2], not ['batch', 3]",
        "'lost' is missing",
        "'spread' is not",
    )
    with refused("smoke_test", *parts):
        smoke_test(case.folder, case.artifact.replace(outputs=outputs))


def test_the_smoke_test_refuses_outputs_of_only_nan(case: Case) -> None:
    spoiled = _edited(case, _scale_weights(float("nan")))
    with refused("smoke_test", "output 'mean' is NaN everywhere"):
        smoke_test(spoiled.folder, spoiled.artifact)


def _champion(case: Case, **changes: Any) -> ChampionOptions:
    fields: dict[str, Any] = {
        "alias": "champion", "version": 4, "folder": str(case.folder), "artifact": case.artifact, "margin": 0.9,
    }  # fmt: skip
    return ChampionOptions(**fields | changes)


def _evaluation(tmp_path: Path, case: Case) -> str:
    """Write an evaluation sample whose targets are the outputs of a model."""
    with OnnxRuntimeRunner(case.folder / MODEL_FILE, OnnxRuntimeOptions()) as runner:
        outputs = runner.run({"x": np.tile(EXAMPLE, (4, 1))})
    targets = {f"target.{name}": array for name, array in outputs.items()}
    np.savez(tmp_path / "evaluation.npz", x=np.tile(EXAMPLE, (4, 1)), **targets)
    return str(tmp_path / "evaluation.npz")


def test_a_champion_is_measured_beside_the_candidate(prepared: Case, case: Case, tmp_path: Path) -> None:
    champion = _edited(case, _scale_weights(1.5))
    options = _champion(champion, on_unsettled="warn")
    report = prepared.benchmark(champion=options, evaluation_path=_evaluation(tmp_path, prepared))
    compared = report.champion
    assert (report.passed, compared.passed, compared.problem) == (True, True, "")
    assert (compared.version, compared.champion_sha256) == (4, champion.artifact.sha256)
    assert compared.sha256 == prepared.artifact.sha256
    assert compared.agreement["mean"].mae > 0.01
    assert all(batch.champion.speed_low > 0 for batch in report.latency.batches)
    metrics = {metric.output: metric for metric in compared.metrics}
    assert metrics["mean"].candidate == pytest.approx(0.0, abs=1e-6)
    assert metrics["mean"].loss == pytest.approx(-1.0, abs=1e-3), "the candidate is better"
    names = [gate.name for gate in gates(None, report) if gate.name.startswith("champion")]
    assert names == ["champion_speed", "champion_size", "champion_metric", "champion_metric"]


@pytest.mark.parametrize("on_worse", ["refuse", "warn"])
def test_a_worse_metric_than_the_champions_refuses_or_warns(
    prepared: Case, case: Case, tmp_path: Path, on_worse: str
) -> None:
    worse = _edited(case, _scale_weights(1 + 1e-6))
    champion = _champion(prepared, on_worse=on_worse, on_unsettled="warn")
    report = worse.benchmark(champion=champion, evaluation_path=_evaluation(tmp_path, prepared))
    assert report.parity.passed
    assert report.passed == (on_worse == "warn")
    found = report.champion.failures if on_worse == "refuse" else report.champion.warnings
    assert any("against version 4, the metric of mean is" in text for text in found)


def test_a_size_above_the_margin_and_other_bytes_of_the_champion_refuse(prepared: Case, case: Case) -> None:
    small = case.artifact.replace(size_bytes=case.artifact.size_bytes // 2)
    report = prepared.benchmark(champion=_champion(case, artifact=small, margin=0.1, on_unsettled="warn"))
    assert not report.passed
    assert any("the size is 2x, not at most 1.1x" in text for text in report.champion.failures)

    (case.folder / MODEL_FILE).write_bytes(b"other")
    report = prepared.benchmark(champion=_champion(case))
    assert not report.passed
    (failure,) = report.champion.failures
    assert failure.startswith("against version 4, it was not measured: ")
    assert MODEL_FILE in failure
    assert report.latency.passed, "the candidate itself is measured"
    assert acceptance(prepared.artifact, records.check(sha256=prepared.artifact.sha256), report)


def test_the_reference_outputs_make_no_model_larger_than_its_champion() -> None:
    files = tuple(
        FileDigest(path=name, sha256=records.SHA, size_bytes=size)
        for name, size in ((MODEL_FILE, 10), (EXTERNAL_DATA_FILE, 20), (REFERENCE_FILE, 400))
    )
    assert served_bytes(records.artifact(files=files, size_bytes=430)) == 30
    assert served_bytes(records.artifact(size_bytes=430)) == 430
