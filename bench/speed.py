"""Latency of the reference model, and of the measuring itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.results import Result
from examples.localization import LocalizationNet
from onnx_release.export import ExportOptions, export_onnx
from onnx_release.host import describe_host, usable_cpus
from onnx_release.latency import Sides, measure
from onnx_release.limits import EXPORT_BATCH_SIZE, MODEL_FILE, LatencyBudget, MeasurePlan
from onnx_release.records import BatchLatency, TensorSpec
from onnx_release.runners import Runner
from onnx_release.runners.ort_runner import OrtOptions, OrtRunner
from onnx_release.runners.torch_runner import TorchModel, TorchOptions, TorchRunner
from onnx_release.samples import Sample, make_samples
from onnx_release.strategies import ModelContract

INPUTS = (TensorSpec(name="mel_spectrogram", dtype="float32", shape=("batch", 3, 128, 32)),)
OUTPUTS = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 2)) for name in ("positions", "uncertainties"))
BUDGET = LatencyBudget()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The reference model with random weights (they cost what trained ones cost), and its exports."""

    module: LocalizationNet
    program: torch.export.ExportedProgram
    onnx: Path


def reference_model(size: str = "tiny") -> LocalizationNet:
    """Return the reference model in eval mode, the same at each call."""
    torch.manual_seed(0)
    return LocalizationNet(size).eval()


def contract() -> ModelContract:
    """Return what the reference model takes and gives, with an example as a training run would leave it."""
    (sample,) = [s for s in make_samples(INPUTS, None, (EXPORT_BATCH_SIZE,)) if s.name.endswith("11")]
    return ModelContract(inputs=INPUTS, outputs=OUTPUTS, example=sample.inputs)


@contextmanager
def subject() -> Iterator[Subject]:
    """Export the tiny model into a folder that lives as long as the context."""
    module = reference_model()
    example = (torch.randn(EXPORT_BATCH_SIZE, 3, 128, 32),)
    program = torch.export.export(module, example, dynamic_shapes=({0: torch.export.Dim("batch")},))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        export_onnx(module, Path(folder), contract(), ExportOptions(device="cpu"))
        yield Subject(module=module, program=program, onnx=Path(folder, MODEL_FILE))


def _torch(model: TorchModel) -> TorchRunner:
    names = tuple(spec.name for spec in INPUTS), tuple(spec.name for spec in OUTPUTS)
    return TorchRunner(model, TorchOptions(input_names=names[0], output_names=names[1], threads=usable_cpus()))


def _ort(path: Path) -> OrtRunner:
    return OrtRunner(path, OrtOptions(threads=usable_cpus()))


def _sample(batch_size: int) -> Sample:
    return make_samples(INPUTS, None, (batch_size,))[0]


def _result(name: str, measured: BatchLatency, goal: str, met: bool | None) -> Result:
    return Result(
        name=name,
        value=measured.speedup,
        unit="x",
        goal=goal,
        met=met,
        n=measured.rounds,
        spread=(measured.speedup_low, measured.speedup_high),
        detail={"latency": measured.to_dict(), "host": describe_host().to_dict(), "threads": usable_cpus()},
    )


def speedup_fp32_tiny(batch_size: int) -> Result:
    """ONNX Runtime against eager PyTorch; the goal is the release's, for the batch size that is served."""
    served = batch_size == BUDGET.batch_size
    with subject() as it, _torch(it.module) as eager, _ort(it.onnx) as session:
        sides = Sides(torch=eager, onnxruntime=session)
        limit = BUDGET.speedup_goal if served else None
        measured = measure(sides, _sample(batch_size), MeasurePlan(), limit)
    goal = f">= {BUDGET.speedup_goal:g}, whole interval" if served else ""
    met = measured.conclusive and measured.speedup_low >= BUDGET.speedup_goal if served else None
    return _result(f"speedup_fp32_tiny_b{batch_size}", measured, goal, met)


def speedup_self() -> Result:
    """ONNX Runtime against itself: a fair measurement gives 1, within its own interval."""
    with subject() as it, _ort(it.onnx) as session:
        return _self_result("speedup_self", session, session)


def speedup_pt2_reference() -> Result:
    """Eager PyTorch against the exported program that a release times instead: a slower stand-in would flatter."""
    with subject() as it, _torch(it.module) as eager, _torch(it.program) as program:
        return _self_result("speedup_pt2_reference", eager, program)


def _self_result(name: str, one: Runner, other: Runner) -> Result:
    plan = replace(MeasurePlan(), interval_width_max=0.1)
    measured = measure(Sides(torch=one, onnxruntime=other), _sample(1), plan)
    return _result(name, measured, "1 within interval", measured.speedup_low <= 1.0 <= measured.speedup_high)
